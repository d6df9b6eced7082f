"""Runs the README in the working directory: `python -m tests.readme_runner FOLDER`, with a Hub in the environment."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from cllm4rec_hf.cli import main
from tests.conftest import QUICK

ROOT = Path(__file__).parent.parent


def blocks() -> list[tuple[str, str]]:
    """Fenced blocks of the README as (language, text): the quick start last, for it uses what the rest publishes."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first, *rest = re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)
    return [*rest, first]


def run(backbone: str) -> dict:
    """Run every block in one namespace, and return it."""
    names: dict = {}
    for language, text in blocks():
        if language == "bash":
            for command in text.replace("\\\n", " ").strip().splitlines():
                program, *arguments = shlex.split(command)
                if program == "python":
                    # as from the root of the repository, but for where it writes
                    script = ROOT / arguments[0]
                    subprocess.run([sys.executable, str(script), *arguments[1:]], check=True)
                else:
                    assert program == "cllm4rec", command
                    assert main(arguments) == 0, command
        elif language == "yaml":
            settings = yaml.safe_load(text) | QUICK | {"backbone": backbone}
            Path("settings.yaml").write_text(yaml.safe_dump(settings))
        else:
            assert language == "python", language
            exec(compile(text, "README.md", "exec"), names)
    return names


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    found = run("backbone")
    assert found["scores"].shape == (1, 18)
    assert Path("recs.parquet").is_file() and Path("adapter", "adapter_model.safetensors").is_file()
    assert Path("quality", "quality.md").is_file() and Path("quality", "quality.png").is_file()
    print("every block ran")
