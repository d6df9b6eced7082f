"""Publishing and reading models, tokenizers, catalogs and prepared data by repository id."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load

import cllm4rec_hf
from cllm4rec_hf import HubError, PreparedData, Recommender
from cllm4rec_hf.cli import main
from tests.conftest import make_backbone, write_interactions
from tests.hub.clients import BACKBONE, BROKEN, BY_PARTS, CHECKPOINT, DATA, LOCAL, SECRET, TRAINED

PACKAGE = Path(cllm4rec_hf.__file__).parent
CODE, TOKENIZER_CODE = ({p.name for p in (PACKAGE / f).glob("*_cllm4rec.py")} for f in ("modeling", "tokenization"))
MODEL_FILES = {"config.json", "model.safetensors", *CODE}
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", *TOKENIZER_CODE}
CATALOG_FILES = {"catalog_items.parquet", "catalog_users.parquet"}
CHECKPOINT_FILES = MODEL_FILES | TOKENIZER_FILES | CATALOG_FILES | {"README.md"}
DATA_FILES = {"README.md", "meta.json", "interactions.parquet", "texts.parquet", "users.parquet", "items.parquet"}


def approximately(rows):
    return [[(item, pytest.approx(score, abs=1e-5)) for item, score in row] for row in rows]


def same(found, expected):
    return [[tuple(pair) for pair in row] for row in found] == approximately(expected)


@pytest.fixture(scope="module")
def published(hub, client, base_tokenizer, tmp_path_factory):
    """What `clients.publish` pushed, and what it recommended locally."""
    folder = tmp_path_factory.mktemp("publisher")
    backbone = folder / "private-backbone"
    make_backbone("llama", vocab_size=len(base_tokenizer) + 6).save_pretrained(backbone)
    base_tokenizer.save_pretrained(backbone)
    source, prepared = folder / "interactions.csv", folder / "prepared"
    write_interactions(source)
    columns = ["--rating-column", "rating", "--text-column", "review", "--k-core", "3"]
    assert main(["prepare", "--interactions", str(source), *columns, "--output", str(prepared)]) == 0
    # the commits that fail: the second of a training, a fourth to a repository that holds a checkpoint, …
    for name, number, how in (
        (TRAINED, 2, "error"), (BY_PARTS, 4, "cut"), ("org/error", 1, "error"), ("org/cut", 1, "cut"),
        ("org/data-error", 1, "error"), ("org/model-error", 1, "cut"), ("org/no-tokenizer", 2, "error"),
    ):  # fmt: skip
        hub.break_commit(name, number, how)
    result = client("publish", backbone, prepared, folder / "training", home="publisher")
    return SimpleNamespace(folder=folder, prepared=prepared, **result)


@pytest.fixture(scope="module")
def options(client, published, tmp_path_factory):
    """What `clients.read_with_options` found, and the folder it wrote into."""
    folder = tmp_path_factory.mktemp("options")
    return SimpleNamespace(folder=folder, **client("read_with_options", folder, home="options"))


def test_what_is_published(hub, published):
    assert set(hub.files(CHECKPOINT)) == CHECKPOINT_FILES
    assert len(hub.history(CHECKPOINT)) == 2 and len(hub.history(DATA, "dataset")) == 1
    assert set(hub.files(BY_PARTS)) >= CHECKPOINT_FILES and len(hub.history(BY_PARTS)) == 3
    assert set(hub.files(DATA, "dataset")) == DATA_FILES
    # no index of other weights stays behind
    assert set(hub.files(SECRET)) == CHECKPOINT_FILES
    assert not any(name.startswith("backbone.") for name in load(hub.files(CHECKPOINT)["model.safetensors"]))
    config = json.loads(hub.files(CHECKPOINT)["config.json"])
    assert (config["backbone_name_or_path"], config["backbone_revision"]) == (BACKBONE, published.commit)
    # without a revision the present commit is recorded
    assert published.recorded == published.commit
    # the files of prepared data are those that `cllm4rec prepare` wrote
    local = {path.name: path.read_bytes() for path in published.prepared.iterdir()}
    assert hub.files(DATA, "dataset")["README.md"] == local["README.md"]
    assert hub.files(DATA, "dataset")["meta.json"] == local["meta.json"]


def test_a_backbone_of_this_machine_goes_along_and_its_path_does_not(hub, published):
    files = hub.files(LOCAL)
    assert any(name.startswith("backbone.") for name in load(files["model.safetensors"]))
    config = json.loads(files["config.json"])
    assert config["backbone_name_or_path"] is None and config["includes_backbone"]


def test_nothing_published_tells_of_this_machine(hub, published):
    for repository in hub.repositories.values():
        for commit in repository.commits:
            for name, content in commit.files.items():
                assert str(published.folder).encode() not in content and b"/root" not in content, name
                assert not name.endswith((".bin", ".pt", ".pth", ".pkl", ".yaml")), name


def test_what_a_trainer_pushes_is_a_checkpoint_each_time(hub, published):
    messages = [commit.message for commit in hub.history(TRAINED)]
    assert messages == ["Training in progress, epoch 1", "Training in progress, epoch 3", "End of training"]
    for commit in hub.history(TRAINED):
        assert set(commit.files) - {".gitattributes"} == CHECKPOINT_FILES | {
            "training_log.json",
            "training_curves.png",
        }
        card = ModelCard(commit.files["README.md"].decode())
        assert card.data.library_name == "cllm4rec_hf" and card.data.base_model == BACKBONE
        assert f'pipeline("recommendation", model="{TRAINED}")' in card.text
        assert not any(name.startswith("backbone.") for name in load(commit.files["model.safetensors"]))
    assert "CLLM4RecError" in published.refused
    assert "hub_strategy 'checkpoint' would upload the optimizer's state" in published.refused[-1]


def test_a_clean_process_recommends_the_same_online_and_offline(hub, client, published):
    names = (CHECKPOINT, TRAINED, BY_PARTS, LOCAL)
    # moved on: whoever reads the backbone's main branch now gets other scores
    assert hub.repositories["model", BACKBONE].branches["main"] != published.commit
    data = PreparedData.load(published.prepared)
    for offline in (False, True):
        result = client("read", *names, home="reader", offline=offline)
        for name in names:
            expected = published.trained if name == TRAINED else published.expected
            assert same(result["found"][name], expected), name
        assert same(result["parts"], published.expected)
        assert result["classes"] == ["CLLM4RecForRecommendation", "CLLM4RecTokenizer"]
        assert result["fingerprint"] == data.fingerprint
        assert result["sizes"] == [len(data.interactions), len(data.texts), data.num_users, data.num_items]


def test_the_command_line_takes_names_of_the_hub(options):
    assert options.evaluate == 0
    assert json.loads((options.folder / "evaluation.json").read_text())["num_users"] == 24
    assert len((options.folder / "recs.csv").read_text().splitlines()) == 1 + 24 * 2


def test_revision_subfolder_and_cache_are_as_in_transformers(options, published):
    assert options.caches == ["datasets--org--data", "models--org--secret", f"models--{BACKBONE.replace('/', '--')}"]
    for recommended in options.other:
        assert same(recommended, published.other)
    assert not any(options.cached.values())
    assert "HubError" in options.not_below and "holds no complete checkpoint" in options.not_below[-1]


@pytest.mark.parametrize("case", ["local", "stranger", "wrong", "gone", "missing"])
def test_what_cannot_be_read_is_said_clearly(case, options):
    found = getattr(options, case)
    for kind, error in found.items():
        # as in transformers: a tokenizer that is not in the cache is a ValueError
        assert ("ValueError" if (case, kind) == ("local", "tokenizer") else "OSError") in error, (case, kind, error)
    said = {
        "local": ("is not a directory that", "local_files_only"),
        "stranger": ("is neither a directory that", "hf auth login", "pass token="),
        "wrong": ("401", "check the token"),
        "gone": ("name a branch, tag or commit", "gone"),
        "missing": ("is neither a directory that", "hf auth login", "check the spelling"),
    }
    for kind, name in (("recommender", SECRET), ("data", DATA)):
        *kinds, text = found[kind]
        assert {"HubError", "CLLM4RecError", "OSError"} <= set(kinds) and "\n" not in text
        assert ("org/nowhere" if case == "missing" else name) in text
        for part in said[case]:
            assert part in text


def test_names_that_no_repository_may_have():
    for load_by_name in (Recommender.from_pretrained, PreparedData.load):
        with pytest.raises(
            HubError, match=r"out/a..b is not a directory that .*, and no repository of the Hub may have"
        ):
            load_by_name("out/a..b")


def test_a_failed_upload_leaves_nothing_that_loads(hub, published, options):
    vain, read = published.vain, options.vain
    for case, name in (("error", "org/error"), ("cut", "org/cut"), ("data", "org/data-error"), ("update", BY_PARTS)):
        assert "HubError" in vain[case] and f"Nothing was uploaded to {name}: " in vain[case][-1], case
    assert "HubError" in vain["stranger"] and "log in by `hf auth login`" in vain["stranger"][-1]
    assert ("model", "org/stranger") not in hub.repositories
    assert vain["model"] and vain["no tokenizer"]
    assert not hub.files("org/data-error", "dataset") and not any(map(hub.files, BROKEN))
    # a good checkpoint stays the one it was
    assert "in vain" not in [commit.message for commit in hub.history(BY_PARTS)]
    for whole, model in zip(read["whole"], read["model"], strict=True):
        assert "HubError" in whole and "holds no complete checkpoint" in whole[-1]
        assert model
    assert "HubError" in read["orphan"] and "org/tiny-llama, which org/orphan needs, has no such" in read["orphan"][-1]
    # parts pushed one by one may well stay incomplete; they do not pass for a whole
    assert set(hub.files("org/no-tokenizer")) == MODEL_FILES | {"README.md"}
    assert "HubError" in read["no tokenizer"] and "The tokenizer of org/no-tokenizer" in read["no tokenizer"][-1]
    assert "DataError" in read["data"] and "org/data-error holds no meta.json" in read["data"][-1]
