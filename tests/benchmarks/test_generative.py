"""benchmarks/generative.py runs from end to end on generated data, and its figures are what they say."""

import json

import numpy as np
import pytest

from cllm4rec_hf.errors import DataError


@pytest.fixture(scope="module")
def benchmark(benchmarks_on_the_path):
    import generative

    return generative


def test_quick(benchmark, tmp_path, capsys):
    benchmark.main(["--quick", "--output", str(tmp_path)])
    result = json.loads((tmp_path / "generative.json").read_text())
    table = (tmp_path / "generative.md").read_text()
    assert table in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part"))
    single, free, constrained, questions = result["rows"]
    assert single["method"] == "RecLLM, one pass" and single["times_single_pass"] == 1
    for row in result["rows"]:
        low, high = row["interval"]
        assert 0 <= low <= row["recall@20"] <= high <= 1 and 0 <= row["ndcg@20"] <= 1
        assert len(row["seconds_per_user"]) == result["turns"] == 2 and min(row["seconds_per_user"]) > 0
        assert row["recall@20"] <= row.get("reachable", 1) + 1e-9
        assert row["method"] in table
    # one epoch of a tiny random model: much of what it generates is no item
    assert free["nonexistent"] > 0 and constrained["nonexistent"] == 0
    assert single["nonexistent"] == questions["nonexistent"] == 0 and questions["training_seconds"] > 0
    assert questions["method"] == "yes/no, 20 candidates by EASE"
    # nothing of this machine
    assert result["backbone"] == "backbone"


def test_quick_results_do_not_take_the_place_of_real_ones(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "quick_materials", lambda _: {})
    monkeypatch.setattr(benchmark, "run", lambda options: {"output": options.output})
    monkeypatch.setattr(benchmark, "markdown", lambda result: result["output"])
    benchmark.main(["--quick"])
    assert not list(tmp_path.iterdir())
    benchmark.main(["--data", "d", "--checkpoint", "c"])
    assert (tmp_path / "runs" / "generative" / "generative.json").is_file()


def test_a_record_names_the_model_that_lies_beside_it(benchmark, tmp_path, monkeypatch):
    import cllm4rec_hf

    class Model:
        GRID = [{"rate": 1}, {"rate": 2}]
        written = []

        @classmethod
        def fit_to(cls, data, seed, **settings):
            model = cls()
            model.settings = settings
            return model

        @classmethod
        def from_pretrained(cls, directory):
            return cls()

        def save_pretrained(self, directory):
            if self.settings.get("broken"):
                raise KeyboardInterrupt
            directory.mkdir(exist_ok=True)

    class Data:
        fingerprint = "f"

    monkeypatch.setattr(cllm4rec_hf, "baseline_class", lambda name: Model)
    arguments = "yes-no", Data(), tmp_path / "model"
    model, _ = benchmark.fitted(*arguments, {}, 0, False, "retriever")
    assert model.retriever == "retriever" and (tmp_path / "model" / "made_by.json").is_file()
    # found again, and given what is not saved with it
    assert benchmark.fitted(*arguments, {}, 0, False, "another")[0].retriever == "another"
    with pytest.raises(KeyboardInterrupt):
        benchmark.fitted(*arguments, {"broken": True}, 0, False)
    assert not (tmp_path / "model" / "made_by.json").exists()


def test_what_could_be_reached(benchmark):
    items = np.array([[4, 5, -1], [1, 2, 3]])
    histories, relevant = [np.array([5]), np.array([9])], [np.array([4, 5]), np.array([1, 2, 3, 7])]
    # an item of the history cannot be recommended, however often it is found
    assert benchmark.reachable(items, histories, relevant) == (1 / 2 + 3 / 4) / 2


def test_what_does_not_compare_is_refused(benchmark, tmp_path, prepared, monkeypatch):
    from types import SimpleNamespace

    import cllm4rec_hf
    from cllm4rec_hf.data.catalog import Catalog

    data = cllm4rec_hf.PreparedData.load(prepared)
    config = SimpleNamespace(text_config=SimpleNamespace(num_hidden_layers=2))
    recommender = SimpleNamespace(catalog=Catalog.from_prepared(data), model=SimpleNamespace(config=config))
    monkeypatch.setattr(cllm4rec_hf.Recommender, "from_pretrained", lambda *_, **__: recommender)
    (tmp_path / "training.yaml").write_text(f"data_fingerprint: {data.fingerprint}")
    assert benchmark.single_pass(data, str(tmp_path), 2).name == "RecLLM, one pass"
    with pytest.raises(SystemExit, match="reads 2 layers of its backbone, the other methods would read 30"):
        benchmark.single_pass(data, str(tmp_path), 30)
    # trained on another split of the same interactions: what is to be found may be known
    (tmp_path / "training.yaml").write_text("data_fingerprint: another")
    with pytest.raises(DataError, match="another seed"):
        benchmark.single_pass(data, str(tmp_path), 2)


def test_says_what_is_missing(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--data", "somewhere"])
    assert "--data and --checkpoint are needed" in capsys.readouterr().err
