"""How the benchmark of quality counts: means over seeds, paired differences, the table and the picture."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from cllm4rec_hf.evaluation.evaluator import EvaluationResult

METRICS = ("recall@20", "recall@40", "ndcg@100")


def result(users, values):
    per_user = dict.fromkeys(METRICS, np.asarray(values, dtype=float))
    return EvaluationResult(
        "test", len(users), {name: float(np.mean(values)) for name in METRICS}, {}, per_user, np.asarray(users)
    )


def test_intervals_over_seeds_are_students():
    from quality_report import seed_interval

    values = [0.31, 0.35, 0.30]
    found = seed_interval(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert found["mean"] - found["half_width"] == pytest.approx(low)
    assert found["mean"] + found["half_width"] == pytest.approx(high)
    assert seed_interval([0.3])["half_width"] is None


def test_a_user_of_several_seeds_counts_once():
    from quality_report import pooled

    both = pooled([result([0, 1], [1.0, 0.0]), result([1, 2], [1.0, 0.25])])
    assert both.users.tolist() == [0, 1, 2]
    assert both.per_user["ndcg@100"].tolist() == [1.0, 0.5, 0.25]


def test_differences_are_paired_by_user():
    from quality_report import compare

    generator = np.random.Generator(np.random.PCG64(0))
    users = np.arange(400)
    # users differ far more than the two methods do
    base = generator.random(400) * 0.8
    better = base + 0.01 + 0.02 * generator.random(400)
    ours = {seed: ({}, result(users, better)) for seed in (0, 1)}
    theirs = {seed: ({}, result(users, base)) for seed in (0, 1, 2)}
    found = compare(ours, theirs, "recall@20")
    assert found["pooled"]["low"] > 0 and found["p_t_test"] < 1e-6 and found["p_wilcoxon"] < 1e-6
    assert found["ratio"] == pytest.approx(better.mean() / base.mean()) and len(found["per_seed"]) == 2
    alike = compare(theirs, theirs, "recall@20")
    assert alike["p_t_test"] == alike["p_wilcoxon"] == alike["ratio"] == 1 and alike["pooled"]["difference"] == 0


def table_and_results(tmp_path, sweep=False):
    """Five methods on two seeds; the text-aware competitor is the strongest, ours is stronger."""
    from quality_config import Method, Seed, Table

    levels = {"Popularity": 0.1, "EASE": 0.2, "EASE with text rows": 0.3, "CLLM4Rec": 0.4}
    names = {"Popularity": "popularity", "EASE": "ease", "EASE with text rows": "ease-text", "CLLM4Rec": None}
    methods = [
        Method(label, name, {}, group="cllm4rec" if name is None else "baseline") for label, name in names.items()
    ]
    if sweep:
        methods = [dataclasses.replace(methods[3], group="reference")]
        for value in (0.0, 0.1, 1.0, 10.0):
            methods.append(Method(f"λ = {value:g}", None, {}, group="sweep", value=value))
            levels[f"λ = {value:g}"] = 0.2 + value / 20
    table = Table(
        "Title", tmp_path, None, "prepared", (Seed(0, 0), Seed(1, 1)), tuple(methods), sweep="λ" if sweep else None
    )
    results = {}
    for method in methods:
        for seed in (0, 1):
            noise = np.random.Generator(np.random.PCG64(len(results))).normal(0, 0.02, 50)
            values = levels[method.label] + 0.05 * seed + np.linspace(-0.1, 0.1, 50) + noise - noise.mean()
            found = result(np.arange(50), values)
            report = {
                "metrics": found.metrics, "seed": seed, "seconds": 3.0 + seed, "interrupted": method.baseline is None,
                "fits": 4 if method.baseline == "ease" else 1, "evaluation_seconds": 0.1, "peak_memory": 2e9,
                "settings": {"ridge": 10.0 * (seed + 1)}, "date": "2024-05-01", "environment": {},
            }  # fmt: skip
            results.setdefault(method.label, {})[seed] = report, found
    size = {"num_users": 50, "num_items": 9, "interactions": 400}
    return table, results, [{"seed": seed, "fingerprint": f"abc{seed}", **size} for seed in (0, 1)]


def test_the_table_compares_with_the_strongest_of_each_kind(tmp_path):
    from quality_report import markdown, summarise

    summary = {
        "command": "python x",
        **summarise(*table_and_results(tmp_path)),
        "skipped": {"ALS": "no"},
        "failed": {},
    }
    rows = {row["label"]: row for row in summary["methods"]}
    ours = rows["CLLM4Rec"]["comparisons"]
    opponents = {name: by_metric["recall@40"]["opponent"] for name, by_metric in ours.items()}
    assert opponents == {
        "best baseline": "EASE with text rows",
        "best text-blind baseline": "EASE",
        "best text-aware baseline": "EASE with text rows",
    }
    assert ours["best baseline"]["ndcg@100"]["ratio"] == pytest.approx(0.425 / 0.325)
    # the best is measured against the second best
    assert rows["EASE with text rows"]["comparisons"]["best baseline"]["recall@20"]["opponent"] == "EASE"
    text = markdown(summary)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    half_width = stats.t.ppf(0.975, 1) * 0.025
    assert f"**0.4250 ± {half_width:.4f}** ▲" in text and f"0.1250 ± {half_width:.4f} ▼" in lines["Popularity"]
    assert "≥ 3.5 s" in text and "3.5 s, 4 fits" in lines["EASE"] and "2.00 GB" in lines["EASE"]
    assert "- EASE: ridge 10.0; ridge 20.0" in text and "- ALS: no" in text and "2 (0) of 2" in lines["CLLM4Rec"]
    json.dumps(summary)


def test_a_method_that_lacks_a_seed_is_no_opponent_and_not_bold(tmp_path):
    from quality_report import markdown, summarise

    table, results, datasets = table_and_results(tmp_path)
    # stronger than all, on the easier split alone
    report, found = results["CLLM4Rec"][1]
    results["Popularity"] = {1: ({**report, "settings": {}}, found)}
    summary = {"command": "", "skipped": {}, "failed": {}, **summarise(table, results, datasets)}
    rows = {row["label"]: row for row in summary["methods"]}
    assert rows["CLLM4Rec"]["comparisons"]["best baseline"]["recall@20"]["opponent"] == "EASE with text rows"
    text = markdown(summary)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "**" not in lines["Popularity"] and f"| CLLM4Rec | **{0.425:.4f}" in text
    # nor is it passed over in silence, as one that has not run at all is not
    assert summary["missing"] == {"Popularity": [0]}
    assert "## Not run, and not compared with\n\n- Popularity: seeds 0\n" in text
    del results["EASE"]
    summary = {"command": "", "skipped": {}, "failed": {}, **summarise(table, results, datasets)}
    assert "- EASE: seeds 0, 1\n" in markdown(summary)


def test_the_preset_is_compared_with_each_of_its_ablations(tmp_path):
    from quality_config import Method
    from quality_report import markdown, summarise

    table, results, datasets = table_and_results(tmp_path)
    ablation = Method("LLM-CF", None, {"ablation": "llm-cf"}, group="cllm4rec")
    other = Method("LLM-CF (other)", None, {"ablation": "llm-cf", "backbone": "other"}, group="cllm4rec")
    table = dataclasses.replace(table, methods=(*table.methods, ablation, other))
    # as good as the strongest baseline
    results["LLM-CF"] = results["LLM-CF (other)"] = results["EASE with text rows"]
    summary = {"command": "", "skipped": {}, "failed": {}, **summarise(table, results, datasets)}
    rows = {row["label"]: row["comparisons"] for row in summary["methods"]}
    found = rows["CLLM4Rec"]["ablation llm-cf"]["recall@20"]
    assert found["opponent"] == "LLM-CF" and found["pooled"]["difference"] == pytest.approx(0.1)
    assert not any(name.startswith("ablation") for label in ("LLM-CF", "EASE") for name in rows[label])
    text = markdown(summary)
    assert "| CLLM4Rec | ablation llm-cf: LLM-CF | Recall@20 | 1.308 |" in text and ": LLM-CF (other)" not in text


def test_a_sweep_is_drawn_on_a_log_axis_with_its_reference(tmp_path, monkeypatch):
    from matplotlib.figure import Figure
    from quality_plots import draw
    from quality_report import summarise

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    table, results, datasets = table_and_results(tmp_path, sweep=True)
    summary = summarise(table, results, datasets)
    against = summary["methods"][-1]["comparisons"]["reference"]["recall@20"]
    assert against["opponent"] == "CLLM4Rec" and against["ratio"] == pytest.approx(0.725 / 0.425)
    draw(summary, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert len(figure.axes) == 3
    for panel in figure.axes:
        assert panel.get_xscale() == "symlog" and panel.get_xlabel() == "λ"
        # the curve fills the panel: nothing is drawn below 0 but a margin
        assert -0.1 < panel.get_xlim()[0] < 0 and 10 < panel.get_xlim()[1] <= 20
        curve, reference = panel.lines[0], next(line for line in panel.lines if line.get_label() == "CLLM4Rec")
        assert curve.get_xdata().tolist() == [0, 0.1, 1, 10]
        np.testing.assert_allclose(curve.get_ydata().astype(float), [0.225, 0.23, 0.275, 0.725])
        assert reference.get_ydata()[0] == pytest.approx(0.425)
