"""What the benchmark of quality reads: the shipped tables, and those that are wrong."""

from pathlib import Path

import pytest
import yaml

from cllm4rec_hf.errors import CLLM4RecError

from .tables import write

CONFIGS = Path(__file__).parents[2] / "examples" / "configs" / "quality"
# the others are lists of methods that these include
TABLES = [path for path in sorted(CONFIGS.glob("*.yaml")) if "data" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_shipped_tables_are_valid(path):
    from quality_config import read_table

    from cllm4rec_hf.baselines.registry import REGISTRY
    from cllm4rec_hf.trainers.settings import RecipeSettings

    table = read_table(path)
    assert table.output == Path("runs") / "quality" / path.stem
    assert (
        len(table.seeds) >= 3
        and table.prepare
        and f"--config examples/configs/quality/{path.name}" in (path.read_text().splitlines()[0])
    )
    baselines = {method.baseline for method in table.methods if method.group == "baseline"}
    # those that benchmarks/generative.py compares, and what is made of a checkpoint of ours
    assert baselines in (set(), set(REGISTRY) - {"pseudo-ids", "yes-no", "cllm4rec-emb"})
    for method in table.methods:
        if method.baseline is None:
            RecipeSettings(**method.settings)
        else:
            assert "backbone" in method.settings or not REGISTRY[method.baseline].needs_backbone


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_shipped_table_has_a_quick_form(path, tmp_path, monkeypatch):
    import quality_quick
    from quality_config import read_table

    monkeypatch.setattr(quality_quick, "write_backbone", lambda directory: directory.mkdir())
    table = read_table(path)
    quick = quality_quick.quick_table(table, tmp_path)
    assert quick.output == tmp_path and len(quick.seeds) == 2 and "--source" not in quick.prepare
    assert sum(method.group == "sweep" for method in quick.methods) == (2 if table.sweep else 0)
    labels = {method.label for method in table.methods if method.group != "sweep"}
    assert labels <= {method.label for method in quick.methods}
    for method in quick.methods:
        assert method.settings.get("backbone", str(tmp_path / "materials" / "backbone")).startswith(str(tmp_path))
        if method.baseline is None:
            assert method.settings["recommendation_epochs"] == 1 and method.settings.get("num_layers", 2) <= 2


def test_sweeps_vary_one_setting_beside_a_reference():
    from quality_config import read_table
    from quality_plots import is_geometric

    swept = {path.stem: read_table(path) for path in TABLES if path.stem.startswith("sweep-")}
    assert set(swept) == {"sweep-lambda-c", "sweep-mask-share", "sweep-num-layers"}
    for name, table in swept.items():
        groups = [method.group for method in table.methods]
        assert groups.count("reference") == 1 and groups.count("sweep") > 4
        points = [method.settings for method in table.methods if method.group == "sweep"]
        differing = {key for key in points[0] if any(point[key] != points[0][key] for point in points)}
        assert differing == {name.removeprefix("sweep-").replace("-", "_")}
    values = {name: [m.value for m in table.methods if m.group == "sweep"] for name, table in swept.items()}
    assert values["sweep-lambda-c"] == [0, 0.01, 0.1, 1, 10, 100]
    assert is_geometric(values["sweep-lambda-c"]) and is_geometric(values["sweep-num-layers"])
    assert not is_geometric(values["sweep-mask-share"])


def test_a_training_configuration_gives_its_settings_to_a_method(tmp_path):
    from quality_config import Seed, read_table

    (tmp_path / "run.yaml").write_text("data: d\noutput: o\nbackbone: b\npreset: paper\nlambda_c: 2.0\n")
    ours = [{"name": "ours", "config": "run.yaml", "cllm4rec": {"lambda_c": 3.0}}]
    seeds = [4, {"prepare": 98765, "train": 1}]
    table = read_table(write(tmp_path / "table.yaml", methods=ours, seeds=seeds))
    assert table.methods[0].settings == {"backbone": "b", "preset": "paper", "lambda_c": 3.0}
    assert table.seeds == (Seed(4, 4), Seed(98765, 1))


def test_some_rows_of_a_table_can_be_run_alone(tmp_path):
    from quality import only
    from quality_config import read_table

    ours = {"name": "ours", "cllm4rec": {"backbone": "b"}}
    made = {"baseline": "cllm4rec-emb", "checkpoint_of": "ours"}
    table = read_table(write(tmp_path / "table.yaml", methods=[{"baseline": "ease"}, ours, made]))
    assert [method.label for method in only(table, "ours, EASE")] == ["EASE", "ours"]
    with pytest.raises(CLLM4RecError, match="no row 'EAZE'; its rows are EASE, ours, CLLM4Rec-Emb"):
        only(table, "EAZE")
    with pytest.raises(CLLM4RecError, match="CLLM4Rec-Emb is made of ours's checkpoint; name that row, too"):
        only(table, "CLLM4Rec-Emb")


def test_some_seeds_of_a_table_can_be_run_alone(tmp_path):
    from quality import with_seeds
    from quality_config import Seed, read_table

    table = read_table(write(tmp_path / "table.yaml", seeds=[0, {"prepare": 98765, "train": 1}, 2]))
    assert with_seeds(table, [2, 1]).seeds == (Seed(98765, 1), Seed(2, 2))
    with pytest.raises(CLLM4RecError, match="no seed 98765; its seeds are 0, 1, 2"):
        with_seeds(table, [98765])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"method": []}, "unknown key 'method'; did you mean 'methods'?"),
        ({"data": {}}, "exactly one of prepare and prepared"),
        ({"data": {"prepare": "--source yelp {raw} --seed 1"}}, "--seed of prepare is set for each seed"),
        ({"methods": [{"baseline": "eese"}]}, "unknown baseline 'eese'"),
        ({"methods": [{"baseline": "ease"}, {"baseline": "ease", "choose": True}]}, "two methods named 'EASE'"),
        ({"methods": [{"baseline": "cllm4rec-emb"}]}, "cllm4rec-emb needs `checkpoint_of: NAME`"),
        ({"methods": [{"baseline": "ease", "checkpoint_of": "x"}]}, "ease takes no `checkpoint_of:`"),
        (
            {"methods": [{"baseline": "ease"}, {"baseline": "cllm4rec-emb", "checkpoint_of": "EASE"}]},
            "checkpoint_of of 'CLLM4Rec-Emb' must be the name of a run of CLLM4Rec in this table (there is none)",
        ),
        ({"methods": [{"name": "x"}]}, "neither `baseline: NAME` nor `cllm4rec:"),
        ({"methods": []}, "names no methods"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"sweep": {"setting": "num_layers", "values": [1, None]}}, "must be numbers"),
    ],
)
def test_wrong_tables_are_told_apart(values, told, tmp_path):
    from quality_config import read_table

    with pytest.raises(CLLM4RecError) as caught:
        read_table(write(tmp_path / "table.yaml", **values))
    assert told in str(caught.value)


def test_an_unknown_setting_of_the_recipe_is_named_before_anything_runs(tmp_path, prepared, capsys):
    import quality

    ours = [{"cllm4rec": {"backbone": "b", "lambda_d": 1.0}}]
    path = write(tmp_path / "table.yaml", methods=ours, data={"prepared": str(prepared)}, output=str(tmp_path / "out"))
    assert quality.main(["--config", str(path)]) == 2
    assert "unknown setting 'lambda_d'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
