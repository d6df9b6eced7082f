"""Tokenized texts that the next start finds on disk."""

import hashlib
import json
import logging
import multiprocessing
import shutil
import time

import datasets
import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from cllm4rec_hf import CLLM4RecTokenizer, ContentCorpus, PreparedData, PromptBuilder
from cllm4rec_hf.data import token_cache

USERS, ITEMS = 6, 9


def builder(base, encoder_decoder=False, users=USERS):
    return PromptBuilder(CLLM4RecTokenizer.from_backbone(base, users, ITEMS), encoder_decoder)


@pytest.fixture
def prompts(base_tokenizer):
    return builder(base_tokenizer)


def texts(count=40):
    generator = np.random.Generator(np.random.PCG64(3))
    words = ["great", "guitar", "strings", "<item_3>", "stay", "in", "tune", "<|end|>", "for", "weeks"]
    rows = [" ".join(generator.choice(words, 1 + k % 30)) for k in range(count)]
    rows[7] = "  "
    kinds = ["review", "item", "user"]
    columns = {
        "kind": [kinds[k % 3] for k in range(count)],
        "user": [k % USERS if k % 3 != 1 else None for k in range(count)],
        "item": [k % ITEMS if k % 3 != 2 else None for k in range(count)],
        "text": rows,
    }
    return Dataset.from_dict(columns)


def documents(corpus):
    rows = [corpus[index] for index in range(len(corpus))]
    assert corpus.lengths.tolist() == [len(row["input_ids"]) for row in rows]
    return [(row["kind"], row["user"], row["item"], row["input_ids"].tolist()) for row in rows]


def entries(directory):
    return sorted(path for path in directory.iterdir() if path.is_dir())


@pytest.fixture
def no_tokenizing(monkeypatch):
    """Call it, and whoever tokenizes from then on fails."""

    def fail(*args):
        raise AssertionError("tokenized again")

    return lambda: monkeypatch.setattr(PromptBuilder, "main_texts", fail)


# ---- what is kept


def test_tokens_are_the_same_in_memory_written_and_read_back(prompts, tmp_path, no_tokenizing):
    reference = [
        (row["kind"], row["user"], row["item"], ids)
        for row in texts()
        if row["text"].strip()
        for ids in prompts.main_texts([row["text"]], 48 - prompts.content_overhead)
    ]
    in_memory = ContentCorpus(texts(), prompts, 48)
    written = ContentCorpus(texts(), prompts, 48, "data", tmp_path)
    no_tokenizing()
    read = ContentCorpus(texts(), prompts, 48, "data", tmp_path)
    assert len(reference) == 39 and max(len(row[-1]) for row in reference) == 48 - prompts.content_overhead
    for corpus in (in_memory, written, read):
        assert documents(corpus) == reference
    assert not in_memory.table.cache_files
    for corpus in (written, read):
        (file,) = corpus.table.cache_files
        assert file["filename"] == str(entries(tmp_path)[0] / "tokens.arrow")


def test_texts_without_a_fingerprint_are_not_kept(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    ContentCorpus(texts(), prompts, 48)
    ContentCorpus(texts(), prompts, 48, cache_dir=tmp_path)
    datasets.disable_caching()
    try:
        ContentCorpus(texts(), prompts, 48, "data")
    finally:
        datasets.enable_caching()
    assert not list(tmp_path.iterdir())
    # and they would have been, there, with one
    ContentCorpus(texts(), prompts, 48, "data")
    assert len(entries(tmp_path / "cllm4rec")) == 1


def test_another_start_finds_the_same_key_and_every_change_gives_another(prompts, base_tokenizer, tmp_path):
    def keys(**changes):
        given = {"prompts": prompts, "max_length": 48, "fingerprint": "data", "texts": texts(), **changes}
        ContentCorpus(given["texts"], given["prompts"], given["max_length"], given["fingerprint"], tmp_path)
        return {path.name for path in entries(tmp_path)}

    first = keys()
    assert len(first) == 1
    # neither a new object, nor saving and loading, nor what the tokenizer was last used for
    prompts.tokenizer.save_pretrained(tmp_path.parent / "saved")
    loaded = CLLM4RecTokenizer.from_pretrained(tmp_path.parent / "saved")
    loaded(["a", "some more"], padding=True, truncation=True, max_length=5)
    for same in (builder(base_tokenizer), PromptBuilder(loaded)):
        assert keys(prompts=same) == first

    state = json.loads(base_tokenizer.backend_tokenizer.to_str())
    state["model"]["merges"] = state["model"]["merges"][:-1]
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|end|>", pad_token="<|end|>"
    )
    from_the_left = CLLM4RecTokenizer.from_backbone(base_tokenizer, USERS, ITEMS, truncation_side="left")
    changes = [
        {"max_length": 47},
        {"fingerprint": "other data"},
        {"texts": texts(39)},
        {"prompts": builder(other)},
        {"prompts": PromptBuilder(from_the_left)},
        {"prompts": builder(base_tokenizer, encoder_decoder=True)},
    ]
    for number, change in enumerate(changes, start=2):
        assert len(keys(**change)) == number, change


def test_prepared_data_with_another_split_has_another_key(prepared, interactions_file, prompts, tmp_path):
    from cllm4rec_hf.cli import main

    arguments = ["prepare", "--interactions", str(interactions_file), "--text-column", "review", "--k-core", "3"]
    assert main([*arguments, "--seed", "5", "--output", str(tmp_path / "other")]) == 0
    for directory in (prepared, prepared, tmp_path / "other"):
        data = PreparedData.load(directory)
        ContentCorpus(data.texts, prompts, 48, data.fingerprint, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 2


# ---- what goes wrong


def flip(entry):
    data = bytearray((entry / "tokens.arrow").read_bytes())
    data[-200] ^= 1
    (entry / "tokens.arrow").write_bytes(data)


def cut(entry):
    data = (entry / "tokens.arrow").read_bytes()
    (entry / "tokens.arrow").write_bytes(data[: len(data) // 2])


def swap(entry):
    """Another table, whole in itself."""
    Dataset.from_dict({"a": [1]}).to_json(entry / "tokens.arrow")
    digest = hashlib.sha256((entry / "tokens.arrow").read_bytes()).hexdigest()
    (entry / "state.json").write_text(json.dumps({"sha256": digest}))


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        cut,
        swap,
        lambda entry: (entry / "tokens.arrow").unlink(),
        lambda entry: (entry / "state.json").unlink(),
        lambda entry: (entry / "state.json").write_text("{"),
        lambda entry: (entry / "state.json").write_text("[]"),
    ],
    ids=["flipped", "cut", "swapped", "no tokens", "no state", "broken state", "odd state"],
)
def test_a_damaged_entry_is_built_again(damage, prompts, tmp_path, caplog, no_tokenizing):
    expected = documents(ContentCorpus(texts(), prompts, 48, "data", tmp_path))
    (entry,) = entries(tmp_path)
    damage(entry)
    with caplog.at_level(logging.WARNING):
        assert documents(ContentCorpus(texts(), prompts, 48, "data", tmp_path)) == expected
    assert "are damaged; tokenizing again" in caplog.text
    no_tokenizing()
    assert documents(ContentCorpus(texts(), prompts, 48, "data", tmp_path)) == expected
    assert entries(tmp_path) == [entry]


def test_what_breaks_off_leaves_no_entry(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "_BATCH", 10)
    calls = []

    def fail_later(self, rows, budget, original=PromptBuilder.main_texts):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, rows, budget)

    with monkeypatch.context() as patch:
        patch.setattr(PromptBuilder, "main_texts", fail_later)
        with pytest.raises(KeyboardInterrupt):
            ContentCorpus(texts(), prompts, 48, "data", tmp_path)
    assert not entries(tmp_path) and len(calls) == 3
    # and of a process that could not clear up, the next one removes what it left
    corpus = ContentCorpus(texts(), prompts, 48, "data", tmp_path)
    (entry,) = entries(tmp_path)
    shutil.copytree(entry, tmp_path / f".{entry.name}.0.part")
    shutil.rmtree(entry)
    assert documents(ContentCorpus(texts(), prompts, 48, "data", tmp_path)) == documents(corpus)
    assert entries(tmp_path) == [entry]


def test_a_cache_that_cannot_be_written_is_done_without(prompts, tmp_path, caplog):
    (tmp_path / "file").write_text("no directory")
    with caplog.at_level(logging.WARNING):
        corpus = ContentCorpus(texts(), prompts, 48, "data", tmp_path / "file")
    assert "cannot be kept in" in caplog.text
    assert documents(corpus) == documents(ContentCorpus(texts(), prompts, 48))


# ---- several at once, and the bar


def build(tokenizer, cache, start, results):
    """One of several processes: how many batches it tokenized, and what came out."""
    calls = []

    def slowly(self, rows, budget, original=PromptBuilder.main_texts):
        calls.append(rows)
        time.sleep(0.5)
        return original(self, rows, budget)

    prompts = PromptBuilder(CLLM4RecTokenizer.from_pretrained(tokenizer))
    PromptBuilder.main_texts = slowly
    start.wait()
    corpus = ContentCorpus(texts(), prompts, 48, "data", cache)
    results.put((len(calls), documents(corpus)))


def test_of_processes_that_start_together_one_tokenizes(prompts, tmp_path):
    prompts.tokenizer.save_pretrained(tmp_path / "tokenizer")
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=build, args=(tmp_path / "tokenizer", tmp_path / "cache", start, results)) for _ in "ab"
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(calls for calls, _ in found) == [0, 1]
    assert found[0][1] == found[1][1] == documents(ContentCorpus(texts(), prompts, 48))
    assert len(entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize("delay, shown", [(0, True), (2, False)])
def test_a_bar_is_shown_when_it_takes_long(delay, shown, prompts, monkeypatch, capsys):
    assert token_cache._BAR_AFTER_SECONDS == 2
    monkeypatch.setattr(token_cache, "_BAR_AFTER_SECONDS", delay)
    ContentCorpus(texts(), prompts, 48)
    assert ("Tokenizing texts" in capsys.readouterr().err) == shown
