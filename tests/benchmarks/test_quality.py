"""The benchmark of quality runs, is interrupted, and goes on."""

import dataclasses
import json
import subprocess
import traceback
from pathlib import Path

import pytest

from cllm4rec_hf.baselines import text_encoder
from cllm4rec_hf.baselines.blend import Blend
from cllm4rec_hf.errors import CLLM4RecError

from .tables import write

CONFIGS = Path(__file__).parents[2] / "examples" / "configs" / "quality"
METRICS = ("recall@20", "recall@40", "ndcg@100")


def requests(table, directory, fingerprint="f"):
    from quality import request_of

    return [request_of(table, method, table.seeds[0], directory, fingerprint)["result"] for method in table.methods]


def test_results_are_kept_under_settings_seed_and_data(tmp_path, monkeypatch):
    from quality_config import Method, Seed, Table

    from cllm4rec_hf.trainers import settings

    methods = (
        Method("a", "ease", {"ridge": 1.0}, group="baseline"),
        Method("b", "ease", {"ridge": 2.0}, group="baseline"),
        Method("c", "ease", {}, choose=True, group="baseline"),
        Method("d", None, {"backbone": "b"}),
        Method("e", None, {"backbone": "b", "lambda_c": 7.0}),
    )
    table = Table("t", tmp_path, None, "p", (Seed(0, 0),), methods)
    names = requests(table, tmp_path)
    assert len(set(names)) == 5 and names == requests(table, Path("elsewhere"))
    assert not set(names) & set(requests(table, tmp_path, "g"))
    assert not set(names) & set(requests(dataclasses.replace(table, seeds=(Seed(0, 1),)), tmp_path))
    # so does other code of a competitor, or of what it is made of
    from quality import _code_of

    whole = _code_of("blend")
    assert whole != _code_of("ease-text")
    monkeypatch.setattr(Blend, "PARTS", ("ease-text",))
    assert _code_of("blend") != whole
    # and of the helpers that it imports
    codes, helper = {name: _code_of(name) for name in ("m6-retrieval", "ease")}, tmp_path / "text_encoder.py"
    helper.write_text("changed")
    monkeypatch.setattr(text_encoder, "__file__", str(helper))
    assert _code_of("m6-retrieval") != codes["m6-retrieval"] and _code_of("ease") == codes["ease"]
    # a preset that changes gives other results
    changed = {**settings.PRESETS["default"], "recommendation_epochs": 99}
    monkeypatch.setitem(settings.PRESETS, "default", changed)
    assert [a == b for a, b in zip(names, requests(table, tmp_path), strict=True)] == [True] * 3 + [False] * 2


@pytest.fixture
def in_process(monkeypatch):
    """Runs take place in this process, which has its libraries; the test of the README starts others."""
    import quality
    import quality_run

    def run(command, **kwargs):
        try:
            quality_run.run(json.loads(Path(command[-1]).read_text()))
        except Exception:
            traceback.print_exc(file=kwargs["stdout"])
            return subprocess.CompletedProcess(command, 1)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(quality.subprocess, "run", run)


@pytest.mark.slow
def test_the_quick_form_runs_and_does_not_run_again(tmp_path, capsys, in_process):
    import quality

    emb = {"baseline": "cllm4rec-emb", "checkpoint_of": "CLLM4Rec"}
    methods = [{"baseline": "popularity"}, emb, {"baseline": "ease-text", "choose": True}]
    path = write(tmp_path / "t.yaml", seeds=[0, 1], methods=[*methods, {"cllm4rec": {"backbone": "b"}}])
    command = ["--config", str(path), "--quick", "--output", str(tmp_path)]
    assert quality.main(command) == 0
    assert "finished before" not in capsys.readouterr().out
    summary = json.loads((tmp_path / "quality.json").read_text())
    rows = {row["label"]: row for row in summary["methods"]}
    assert list(rows) == ["Popularity", "CLLM4Rec-Emb", "EASE with text rows", "CLLM4Rec"] and not summary["failed"]
    for row in rows.values():
        assert row["seeds"] == [0, 1] and row["seconds"]["mean"] > 0 and row["peak_memory"] > 5e7
        assert all(0 < row["metrics"][name]["mean"] <= 1 for name in METRICS)
    # the planted tastes are found
    assert (
        rows["EASE with text rows"]["metrics"]["ndcg@100"]["mean"] > rows["Popularity"]["metrics"]["ndcg@100"]["mean"]
    )
    assert rows["EASE with text rows"]["fits"] > 1 and len(summary["data"]) == 2
    assert summary["data"][0]["fingerprint"] != summary["data"][1]["fingerprint"]
    # where the checkpoint lies is not told, and it is no competitor
    assert rows["CLLM4Rec-Emb"]["settings"] == [{"max_epochs": 1}] * 2 and rows["CLLM4Rec-Emb"]["group"] == "cllm4rec"
    text = (tmp_path / "quality.md").read_text()
    assert "| CLLM4Rec |" in text and (tmp_path / "quality.png").is_file()
    assert "CLLM4Rec-Emb is made of the checkpoint of CLLM4Rec, whose training is not in its time." in text
    # one result is lost: it alone is made again, and the training that made it is not repeated
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "results").glob("*.json")}
    assert len(times) == 8
    lost = next(file for file in times if json.loads(file.read_text())["identity"]["baseline"] is None)
    before = json.loads(lost.read_text())
    lost.unlink()
    assert quality.main(command) == 0
    assert capsys.readouterr().out.count("finished before") == 7
    assert all(file.stat().st_mtime_ns == time for file, time in times.items() if file != lost)
    after = json.loads(lost.read_text())
    assert after["seconds"] == before["seconds"] and after["metrics"] == before["metrics"]


def with_emb(table, label="CLLM4Rec"):
    """The table with CLLM4Rec-Emb before all that it has."""
    from quality_config import Method

    emb = Method("CLLM4Rec-Emb", "cllm4rec-emb", {"max_epochs": 1}, checkpoint_of=label)
    return dataclasses.replace(table, methods=(emb, *table.methods))


def test_what_is_made_of_a_checkpoint_comes_after_it_and_is_kept_under_it(tmp_path, prepared, monkeypatch):
    import quality
    from quality_config import Method, Seed, Table

    run = Method("CLLM4Rec", None, {"backbone": "b"})
    table = with_emb(Table("t", tmp_path / "out", None, str(prepared), (Seed(0, 0), Seed(0, 1)), (run,)))
    emb, ours = (quality.request_of(table, method, table.seeds[0], prepared, "f") for method in table.methods)
    assert Path(emb["checkpoint"]) == Path(ours["work"], "checkpoint") and ours["checkpoint"] is None
    # of another run, or of another seed, it is another
    other = with_emb(dataclasses.replace(table, methods=(dataclasses.replace(run, settings={"backbone": "c"}),)))
    assert len({requests(each, prepared)[0] for each in (table, other)}) == 2
    order = []
    monkeypatch.setattr(quality, "execute", lambda request, label: order.append(label) or "not now")
    with pytest.raises(CLLM4RecError, match="No method finished"):
        quality.run_table(table)
    assert [label.split(maxsplit=1)[1] for label in order] == [
        "CLLM4Rec, seed 0", "CLLM4Rec-Emb, seed 0", "CLLM4Rec, seed 1", "CLLM4Rec-Emb, seed 1"
    ]  # fmt: skip


def test_without_the_checkpoint_it_is_not_run(tmp_path, monkeypatch):
    import quality
    from quality_run import RECORD

    names = {name: str(tmp_path / name) for name in ("result", "work")}
    request = {**names, "checkpoint": str(tmp_path / "run" / "checkpoint")}
    assert "has not finished" in quality.execute(request, "Emb")
    # it had, and its checkpoint was deleted: the result has to go, too
    (tmp_path / "run.json").write_text("{}")
    assert f"is gone; delete {tmp_path / 'run.json'} to train it again" in quality.execute(request, "Emb")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RECORD).write_text("{}")
    # started now, and there is no such script
    monkeypatch.setattr(quality, "RUN", tmp_path / "none.py")
    assert quality.execute(request, "Emb") == "status 2"


def test_a_method_that_fails_leaves_the_others_in_the_table(tmp_path, prepared, capsys, in_process):
    import quality

    methods = [{"baseline": "popularity"}, {"baseline": "ease", "settings": {"rigde": 1.0}}]
    path = write(tmp_path / "t.yaml", methods=methods, data={"prepared": str(prepared)}, output=str(tmp_path / "out"))
    assert quality.main(["--config", str(path)]) == 1
    summary = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert [row["label"] for row in summary["methods"]] == ["Popularity"]
    assert summary["methods"][0]["metrics"]["recall@20"]["half_width"] is None
    (reason,) = summary["failed"].values()
    assert "rigde" in reason and "rigde" in (tmp_path / "out" / "quality.md").read_text()
    # what failed is tried again
    capsys.readouterr()
    assert quality.main(["--config", str(path)]) == 1
    assert capsys.readouterr().out.count("finished before") == 1


def test_raw_files_are_asked_for_only_until_they_are_prepared(tmp_path, interactions_file, capsys, in_process):
    import quality

    command = "--interactions {raw}/interactions.csv --rating-column rating --text-column review --k-core 3"
    path = write(tmp_path / "t.yaml", data={"prepare": command}, output=str(tmp_path / "out"))
    assert quality.main(["--config", str(path)]) == 2
    assert "--raw" in capsys.readouterr().err
    assert quality.main(["--config", str(path), "--raw", str(interactions_file.parent)]) == 0
    assert str(tmp_path) not in (tmp_path / "out" / "quality.md").read_text()
    assert quality.main(["--config", str(path)]) == 0
    assert "finished before" in capsys.readouterr().out


def test_rows_run_alone_stand_beside_those_that_have_finished(tmp_path, prepared, capsys, in_process):
    import quality

    methods = [{"baseline": name} for name in ("popularity", "ease", "tfidf-neighbours")]
    values = {"methods": methods, "data": {"prepared": str(prepared)}, "output": str(tmp_path / "out")}
    path = write(tmp_path / "table.yaml", **values)
    for names in ("EASE", "Popularity"):
        assert quality.main(["--config", str(path), "--only", names]) == 0
    summary = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert [row["label"] for row in summary["methods"]] == ["Popularity", "EASE"] and not summary["failed"]
    assert summary["methods"][1]["environments"][0]["code"]
    assert "[1/1] Popularity" in capsys.readouterr().out


def test_seeds_run_alone_are_all_that_is_told(tmp_path, prepared, in_process):
    import quality

    values = {"methods": [{"baseline": "ease"}], "seeds": [0, 1], "data": {"prepared": str(prepared)}}
    path = write(tmp_path / "table.yaml", **values, output=str(tmp_path / "out"))
    assert quality.main(["--config", str(path), "--seeds", "1"]) == 0
    summary = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert summary["methods"][0]["seeds"] == [1] and summary["command"].endswith(" --seeds 1")
    assert quality.main(["--config", str(path), "--seeds", "2"]) == 2


def test_missing_libraries_are_told_with_their_extras(tmp_path, monkeypatch):
    import quality
    from quality_config import Method, Seed, Table

    monkeypatch.setattr(quality.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'cllm4rec-hf[baselines]'" in quality.lacking(Method("ALS", "implicit-als", {}))
    assert quality.lacking(Method("EASE", "ease", {})) is None
    # the picture's is told before hours of training
    table = Table("t", tmp_path, None, "nowhere", (Seed(0, 0),), (Method("EASE", "ease", {}),))
    with pytest.raises(CLLM4RecError, match=r"pip install 'cllm4rec-hf\[card\]'"):
        quality.run_table(table)


@pytest.mark.slow
def test_all_competitors_and_ablations_run_in_the_quick_form(tmp_path):
    import quality
    import quality_quick
    from quality_config import read_table

    table = quality_quick.quick_table(read_table(CONFIGS / "movielens-100k.yaml"), tmp_path)
    summary = quality.run_table(dataclasses.replace(table, seeds=table.seeds[:1]))
    assert not summary["failed"] and len(summary["methods"]) + len(summary["skipped"]) == len(table.methods)
    assert all(0 < row["metrics"]["recall@20"]["mean"] <= 1 for row in summary["methods"])
