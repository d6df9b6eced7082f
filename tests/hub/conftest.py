"""A fake Hub, and clients of it in processes of their own: huggingface_hub reads its environment when it is imported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .fake_hub import TOKEN, FakeHub

ROOT = Path(__file__).parent.parent.parent


def client_environment(endpoint: str, home: Path, token: str | None, offline: bool = False) -> dict[str, str]:
    """The environment of a process that knows no other Hub."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return environment | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "NO_PROXY": "127.0.0.1",
        **({"HF_TOKEN": token} if token else {}),
    }


@pytest.fixture(scope="module")
def hub():
    """A running fake Hub; a test may stop it."""
    with FakeHub() as running:
        yield running


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory) -> Callable[..., Any]:
    """Runs a function of tests/hub/clients.py in a clean process and returns what it returns (by JSON).

    `home` names the HF_HOME: two calls with the same name share a cache. For an `offline` client there is no Hub: nobody
    listens at its endpoint.
    """
    homes = tmp_path_factory.mktemp("homes")

    def call(function: str, *arguments: Any, home: str, token: str | None = TOKEN, offline: bool = False) -> Any:
        endpoint = "http://127.0.0.1:9" if offline else hub.url
        environment = client_environment(endpoint, homes / home, token, offline)
        command = [sys.executable, "-m", "tests.hub.clients", function, *map(str, arguments)]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, f"{function}{arguments}:\n{result.stdout}\n{result.stderr}"
        return json.loads(result.stdout.splitlines()[-1])

    return call
