"""The paper's runs from raw files to metrics, on generated files of the same layouts and tiny language models."""

import gzip
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from transformers import GPT2Config, LlamaConfig, T5Config

from cllm4rec_hf.cli import main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "examples" / "configs" / "paper").glob("*.yaml"))
DATA = ("beauty", "sports", "toys", "yelp")
BACKBONES = {"gpt2": "openai-community/gpt2", "t5": "google-t5/t5-base", "llama-7b": "huggyllama/llama-7b"}
# a run of each family, and both layouts, in every test run
QUICK = ("beauty-gpt2", "yelp-t5", "toys-llama-7b")

USERS, ITEMS = 12, 10
WORDS = ["soft", "warm", "bright", "solid", "cheap", "sweet", "fresh", "quick"]

TINY = {
    "gpt2": lambda: GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64),
    "t5": lambda: T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0),
    "llama-7b": lambda: LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64
    ),
}


def pairs():
    """User, item and words of 12 users who like 7 of 10 items each, and one rating that is too low to count."""
    generator = np.random.Generator(np.random.PCG64(3))
    for user in range(USERS):
        for step in generator.permutation(7):
            yield user, (user + int(step)) % ITEMS, 5.0, " ".join(generator.choice(WORDS, 5))
    yield 0, ITEMS, 2.0, "a rating too low to count"


def write_lines(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(f"{row}\n" for row in rows)


def write_amazon(directory, category):
    """Reviews as JSON lines and, as in the 2014 release, metadata as Python literals."""
    write_lines(
        directory / f"reviews_{category}_5.json.gz",
        (
            json.dumps(
                {"reviewerID": f"A{user}", "asin": f"B{item}", "reviewerName": "x", "helpful": [0, 0],
                 "reviewText": text, "overall": rating, "summary": "s", "unixReviewTime": 1390000000 + item,
                 "reviewTime": "01 18, 2014"}
            )
            for user, item, rating, text in pairs()
        ),
    )  # fmt: skip
    products = ({"asin": f"B{item}", "title": f"It's item {item}", "description": "Words."} for item in range(ITEMS))
    write_lines(directory / f"meta_{category}.json.gz", map(repr, products))


def write_yelp(directory):
    files = {
        "review": (
            {"review_id": f"r{user}-{item}", "user_id": f"U{user}", "business_id": f"B{item}", "stars": rating,
             "useful": 0, "text": text, "date": f"2019-02-{item + 1:02d} 10:00:00"}
            for user, item, rating, text in pairs()
        ),
        "business": (
            {"business_id": f"B{item}", "name": f"Place {item}", "city": "Here", "state": "AZ", "stars": 4.0,
             "categories": "Food, Bars"}
            for item in range(ITEMS + 1)
        ),
        "user": (
            {"user_id": f"U{user}", "name": "x", "yelping_since": "2012-03-01 00:00:00", "elite": "2014,2015"}
            for user in range(USERS)
        ),
    }  # fmt: skip
    for kind, rows in files.items():
        write_lines(directory / f"yelp_academic_dataset_{kind}.json", map(json.dumps, rows))


def commands_of(config):
    """The commands in a configuration's comments, each as arguments."""
    comments = [line[2:] for line in config.read_text().splitlines() if line.startswith("# ")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(comments))
    return {
        words[0]: words[1:]
        for line in text.splitlines()
        if (words := shlex.split(line, posix=False))[0] in ("cllm4rec", "accelerate")
    }


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """A language model of each family, of one layer and random weights, with a tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        from quality_quick import write_backbone
    directory = tmp_path_factory.mktemp("backbones")
    for name, make in TINY.items():
        write_backbone(directory / name, make())
    return directory


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A function: where the command in a configuration's comments has prepared generated raw files."""
    directory, done = tmp_path_factory.mktemp("paper"), {}

    def prepare(config):
        arguments = tuple(commands_of(config)["cllm4rec"])
        if arguments not in done:
            raw = directory / str(len(done)) / "raw"
            raw.mkdir(parents=True)
            if "yelp" in arguments:
                write_yelp(raw)
            else:
                reviews = next(word for word in arguments if "reviews_" in word)
                write_amazon(raw, re.fullmatch(r"raw/reviews_(\w+)_5\.json\.gz", reviews)[1])
            moved = [re.sub(r"^(raw|runs)(?=/|$)", lambda m: str(raw.parent / m[0]), word) for word in arguments]
            assert main(moved) == 0
            done[arguments] = raw.parent
        return done[arguments]

    return prepare


def test_every_data_set_has_a_run_on_every_backbone():
    assert {config.stem for config in CONFIGS} == {f"{data}-{name}" for data in DATA for name in BACKBONES}


def test_the_preset_has_the_constants_of_the_paper_and_its_released_code():
    from cllm4rec_hf.modeling.configuration_cllm4rec import CLLM4RecConfig
    from cllm4rec_hf.trainers.presets import PAPER

    expected = {
        "content_epochs": 10, "pretraining_epochs": 100, "recommendation_epochs": 150, "lambda_c": 1.0,
        "content_stage_learning_rate": 1e-3, "pretraining_learning_rate": 1e-3, "recommendation_learning_rate": 1e-4,
        "mask_share": [0.2, 0.2], "max_length": 1024, "max_text_length": 1024, "batch_size": 20,
        "gradient_accumulation_steps": 8, "lr_scheduler_type": "constant", "warm_start": "none", "history_term": False,
        "center_hidden": False, "item_bias": False, "anonymous_share": 0.0, "row_sparse": False,
    }  # fmt: skip
    assert {name: PAPER[name] for name in expected} == expected
    # all items have a part in the softmax, of Yelp's, too
    assert PAPER["sampled_softmax_above"] > 10**7
    assert CLLM4RecConfig().initializer_range == 0.02


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_settings_are_the_papers(config):
    from cllm4rec_hf.trainers.presets import PAPER
    from cllm4rec_hf.trainers.settings import parse_settings

    settings = parse_settings(["--config", str(config)])
    data, _, name = config.stem.partition("-")
    assert settings.backbone == BACKBONES[name] and settings.preset == "paper"
    assert {field: getattr(settings, field) for field in PAPER} == PAPER
    # what the comments say fits what the settings say
    commands = commands_of(config)
    assert commands["cllm4rec"][-2:] == ["--output", settings.data]
    assert commands["accelerate"][-1] == f"examples/configs/paper/{config.name}"
    rules = dict(zip(commands["cllm4rec"], commands["cllm4rec"][1:], strict=False))
    assert rules["--min-rating"] == "4" and rules["--k-core"] == "5" and rules["--seed"] == "98765"
    assert data in settings.output and settings.output != settings.data


@pytest.mark.parametrize(
    "config",
    [pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow) for path in CONFIGS],
)
def test_from_raw_files_to_metrics(config, prepared, backbones, tmp_path):
    directory = prepared(config)
    data = directory / "runs" / "paper" / config.stem.partition("-")[0] / "prepared"
    meta = json.loads((data / "meta.json").read_text())
    assert meta["steps"][-1] == {**meta["steps"][-1], "users": USERS, "items": ITEMS, "interactions": 7 * USERS}
    backbone = config.stem.partition("-")[2]
    arguments = ["train", "--config", str(config), "--data", str(data), "--output", str(tmp_path / "out")]
    arguments += ["--backbone", str(backbones / backbone), "--max_length", "64", "--max_text_length", "40"]
    arguments += ["--content_epochs", "1", "--pretraining_epochs", "1", "--recommendation_epochs", "1"]
    assert main(arguments) == 0
    assert main(["evaluate", "--model", str(tmp_path / "out"), "--data", str(data), "--no-baselines"]) == 0
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["num_users"] == USERS
    # 40 items are more than there are: whatever the order, all is found
    assert report["recall@40"] == 1 and 0 < report["ndcg@100"] <= 1
    stages = json.loads((tmp_path / "out" / "training_log.json").read_text())
    assert list(stages) == ["content", "pretraining", "recommendation"]
