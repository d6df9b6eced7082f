"""A checkpoint's own code, and how much memory loading takes; each in a process of its own."""

import json
import os
import subprocess
import sys

import pytest
import torch

from cllm4rec_hf import CLLM4RecForCollaborative, CLLM4RecForRecommendation, CLLM4RecTokenizer
from tests.conftest import FAMILIES, make_backbone
from tests.modeling.test_models import HEAD, model_of

WITHOUT_THE_PACKAGE = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "cllm4rec_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
try:
    import cllm4rec_hf
    raise SystemExit("the package can be imported")
except ModuleNotFoundError:
    pass
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

answers = {}
for name in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    encoded = tokenizer("<user_1> has interacted with <item_2> <item_6>,", return_tensors="pt")
    if model.config.is_encoder_decoder and type(model).__name__ != "CLLM4RecForRecommendation":
        encoded["decoder_input_ids"] = torch.tensor([[0, 5]])
    with torch.no_grad():
        logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], **{k: v for k, v in encoded.items() if k.startswith("decoder")}).logits
    answers[name] = [type(model).__name__, type(model).__module__.split(".")[0], encoded["input_ids"].tolist(), logits.tolist()]
    # what it saves has its code again
    model.save_pretrained(name + "-again")
    tokenizer.save_pretrained(name + "-again")
print(json.dumps(answers))
"""


def run(code, *arguments, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_a_checkpoint_loads_by_its_own_code(base_tokenizer, tmp_path):
    vocabulary = len(base_tokenizer) + 6
    expected = {}
    for family in FAMILIES:
        for cls in (CLLM4RecForRecommendation, CLLM4RecForCollaborative):
            home = tmp_path / f"backbone-{family}"
            make_backbone(family, vocab_size=vocabulary).save_pretrained(home)
            model = cls.from_backbone(home, 5, 7, seed=3, **HEAD)
            tokenizer = CLLM4RecTokenizer.from_backbone(base_tokenizer, 5, 7, base_vocab_size=vocabulary)
            directory = tmp_path / f"{family}-{cls.__name__}"
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            encoded = tokenizer("<user_1> has interacted with <item_2> <item_6>,", return_tensors="pt")
            extra = {}
            if model.config.is_encoder_decoder and cls is CLLM4RecForCollaborative:
                extra["decoder_input_ids"] = torch.tensor([[0, 5]])
            with torch.no_grad():
                logits = model(encoded["input_ids"], encoded["attention_mask"], **extra).logits
            expected[str(directory)] = [
                cls.__name__,
                "transformers_modules",
                encoded["input_ids"].tolist(),
                logits.tolist(),
            ]
    answers = run(WITHOUT_THE_PACKAGE, *expected, HF_HOME=str(tmp_path / "home"))
    assert answers.keys() == expected.keys()
    for name, (*said, logits) in answers.items():
        assert said == expected[name][:-1]
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(expected[name][-1]), rtol=1e-6, atol=1e-6)
    for directory in expected:
        for name in (
            "modeling_cllm4rec.py",
            "losses_cllm4rec.py",
            "tokenization_cllm4rec.py",
            "id_tokens_cllm4rec.py",
        ):
            assert os.path.isfile(os.path.join(f"{directory}-again", name)), name


def test_the_packages_own_code_is_used_where_it_is_installed(tmp_path):
    from transformers import AutoModel

    model_of("llama").save_pretrained(tmp_path)
    # the checkpoint's copy would fail
    (tmp_path / "modeling_cllm4rec.py").write_text("raise RuntimeError('the copy was run')")
    assert type(AutoModel.from_pretrained(tmp_path)) is CLLM4RecForRecommendation
    assert type(AutoModel.from_pretrained(tmp_path, trust_remote_code=True)) is CLLM4RecForRecommendation


MEMORY = """
import json, sys, threading, time
import torch
from cllm4rec_hf import CLLM4RecForRecommendation

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))

peak, stop = [0.0], threading.Event()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)

CLLM4RecForRecommendation.from_pretrained(sys.argv[2])
before = anonymous()
thread = threading.Thread(target=watch)
thread.start()
model = CLLM4RecForRecommendation.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[3]))
stop.set()
thread.join()
tables = sum(table.weight.nbytes for table in model.tables())
print(json.dumps([tables / 2**20, sum(p.nbytes for p in model.backbone.parameters()) / 2**20, peak[0] - before]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's account of a process's memory")
def test_loading_allocates_nothing_twice(tmp_path):
    home = tmp_path / "backbone"
    make_backbone("llama", vocab_size=300_000).save_pretrained(home)
    CLLM4RecForRecommendation.from_backbone(home, 300_000, 100_000).save_pretrained(tmp_path / "large")
    model_of("llama").save_pretrained(tmp_path / "small")
    # weights are read from the mapped file where their dtype is the file's; what is converted exists once more
    tables, backbone, growth = run(MEMORY, tmp_path / "large", tmp_path / "small", "float32")
    assert tables > 90 and backbone > 30 and growth < 15
    tables, backbone, growth = run(MEMORY, tmp_path / "large", tmp_path / "small", "bfloat16")
    assert backbone > 15 and growth < backbone + 15
