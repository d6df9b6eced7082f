"""What importing the package costs and registers."""

import subprocess
import sys

import pytest


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_pulls_in_nothing_heavy():
    heavy = "torch polars datasets scipy sklearn pyarrow accelerate numpy.linalg"
    code = f"import transformers, sys; before = set(sys.modules); import cllm4rec_hf; new = set(sys.modules) - before; print([m for m in {heavy.split()} if m in new])"
    assert run(code) == "[]"


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModel, AutoTokenizer; import cllm4rec_hf",
        "import cllm4rec_hf; from transformers import Trainer",
        "import cllm4rec_hf.modeling.modeling_cllm4rec",
        "import cllm4rec_hf.tokenization.tokenization_cllm4rec",
    ],
)
def test_auto_classes_know_it_in_any_order_of_imports(first):
    code = (
        f"{first}\n"
        "from transformers import AutoConfig, AutoModel, AutoTokenizer\n"
        "import cllm4rec_hf\n"
        "from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING\n"
        "c = cllm4rec_hf.CLLM4RecConfig\n"
        "print(AutoConfig.for_model('cllm4rec').__class__ is c, c in AutoModel._model_mapping.keys(), c in TOKENIZER_MAPPING.keys())"
    )
    assert run(code).splitlines()[-1] == "True True True"


def test_every_public_name_is_there():
    import cllm4rec_hf

    for name in cllm4rec_hf.__all__:
        assert getattr(cllm4rec_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        cllm4rec_hf.Nothing  # noqa: B018
