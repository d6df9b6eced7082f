"""What importing the package costs and registers."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_pulls_in_nothing_heavy():
    heavy = "torch polars datasets scipy sklearn pyarrow accelerate numpy.linalg"
    code = f"import transformers, sys; before = set(sys.modules); import cllm4rec_hf; new = set(sys.modules) - before; print([m for m in {heavy.split()} if m in new])"
    assert run(code) == "[]"


# each in a fresh process: any of these may be the first that makes transformers import its Auto classes
FIRST = [
    *(
        f"import cllm4rec_hf.{path.parent.name}.{path.stem}"
        for folder in ("modeling", "tokenization")
        for path in sorted((ROOT / "cllm4rec_hf" / folder).glob("*_cllm4rec.py"))
    ),
    "import cllm4rec_hf.trainers.recipe",
    "import cllm4rec_hf.inference.recommender",
    "import cllm4rec_hf.inference.pipeline",
    "from cllm4rec_hf import CLLM4RecTokenizer",
    "import cllm4rec_hf; from transformers import AutoModel",
    "import cllm4rec_hf; from transformers import Trainer, pipeline",
    "from transformers import AutoModel, AutoTokenizer; import cllm4rec_hf",
]

CHECK = """
from transformers import AutoConfig, AutoModel
import cllm4rec_hf
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
config_class = cllm4rec_hf.CLLM4RecConfig
assert type(AutoConfig.for_model("cllm4rec")) is config_class
assert config_class in AutoModel._model_mapping.keys() and config_class in TOKENIZER_MAPPING.keys()
from transformers.pipelines import PIPELINE_REGISTRY
assert PIPELINE_REGISTRY.check_task("recommendation")[1]["impl"] is cllm4rec_hf.RecommendationPipeline
"""


@pytest.mark.slow
def test_auto_classes_know_it_in_any_order_of_imports():
    code = f"""
import os, sys, traceback, torch, accelerate, datasets, sklearn, transformers.configuration_utils
assert "transformers.models.auto.modeling_auto" not in sys.modules
for first in {FIRST!r}:
    child = os.fork()
    if not child:
        try:
            exec(first + {CHECK!r})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("failed:", first)
"""
    assert run(code) == ""


def test_every_public_name_is_there():
    import cllm4rec_hf

    for name in cllm4rec_hf.__all__:
        assert getattr(cllm4rec_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        cllm4rec_hf.Nothing  # noqa: B018
