"""From the finished runs of a table to its figures: means over seeds, paired differences, Markdown."""

import dataclasses
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from quality_config import Method, Table

from cllm4rec_hf.evaluation.evaluator import EvaluationResult, paired_difference

# which competitors a method is compared with, by the heading of that comparison
OPPONENTS = {
    "best baseline": lambda method: method.group == "baseline",
    "best text-blind baseline": lambda method: method.group == "baseline" and not _reads_texts(method),
    "best text-aware baseline": lambda method: method.group == "baseline" and _reads_texts(method),
    "reference": lambda method: method.group == "reference",
}


def load_result(name: Path, table: Table) -> tuple[dict[str, Any], EvaluationResult]:
    """What a run wrote: its report, and its metrics user by user.

    Args:
        name: the result's file without suffix.
        table: the table that it belongs to.
    """
    import pyarrow.parquet as pq

    report = json.loads(name.with_name(f"{name.name}.json").read_text(encoding="utf-8"))
    columns = pq.read_table(name.with_name(f"{name.name}.parquet"))
    per_user = {metric: columns[metric].to_numpy() for metric in table.metrics}
    result = EvaluationResult(table.split, len(columns), report["metrics"], {}, per_user, columns["user"].to_numpy())
    return report, result


def seed_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % t-interval over seeds.

    Args:
        values: one a seed.

    Returns:
        `mean`, `half_width` (None for a single seed, which says nothing about the others) and `values`.
    """
    from scipy.stats import t

    half_width = None
    if len(values) > 1:
        half_width = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": float(np.mean(values)), "half_width": half_width, "values": list(map(float, values))}


def pooled(results: Sequence[EvaluationResult]) -> EvaluationResult:
    """All seeds as one result: each user's mean over the seeds that rank for her.

    A user has one row, so that resampling users does not take her seeds for independent people.
    """
    users = np.concatenate([result.users for result in results])
    distinct, inverse = np.unique(users, return_inverse=True)
    times = np.bincount(inverse)
    per_user = {}
    for metric in results[0].metrics:
        values = np.concatenate([result.per_user[metric] for result in results])
        per_user[metric] = np.bincount(inverse, weights=values) / times
    means = {metric: float(values.mean()) for metric, values in per_user.items()}
    return EvaluationResult(results[0].split, len(distinct), means, {}, per_user, distinct)


def compare(ours: dict[int, Any], theirs: dict[int, Any], metric: str) -> dict[str, Any]:
    """One method against another, on the seeds that both finished.

    Args:
        ours: report and result by position of the seed.
        theirs: those of the opponent.
        metric: which metric.

    Returns:
        `ratio` of the means; `per_seed` and `pooled` paired differences over users with their 95 % bootstrap
        intervals; for the pooled ones the p-values of the paired t-test and of Wilcoxon's signed-rank test.
    """
    from scipy.stats import ttest_1samp, wilcoxon

    seeds = sorted(ours.keys() & theirs.keys())
    pairs = [(ours[seed][1], theirs[seed][1]) for seed in seeds]
    own, other = pooled([pair[0] for pair in pairs]), pooled([pair[1] for pair in pairs])
    difference = own.per_user[metric] - other.per_user[metric]
    means = [np.mean([pair[side].metrics[metric] for pair in pairs]) for side in (0, 1)]
    # two rankings that never differ are no evidence of a difference
    same = not difference.any()
    return {
        "ratio": float(means[0] / means[1]) if means[1] else None,
        "per_seed": [paired_difference(*pair)[metric]._asdict() for pair in pairs],
        "pooled": paired_difference(own, other)[metric]._asdict(),
        "p_t_test": 1.0 if same else float(ttest_1samp(difference, 0).pvalue),
        "p_wilcoxon": 1.0 if same else float(wilcoxon(difference).pvalue),
    }


def summarise(table: Table, results: dict[str, dict[int, Any]], datasets: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that quality.json says.

    Args:
        table: what was to run.
        results: report and result by label and position of the seed.
        datasets: what was read, one a seed.
    """
    methods = [method for method in table.methods if method.label in results]
    rows = []
    for method in methods:
        reports = [results[method.label][seed][0] for seed in sorted(results[method.label])]
        metrics = {name: seed_interval([report["metrics"][name] for report in reports]) for name in table.metrics}
        rows.append(
            {
                "label": method.label,
                "group": method.group,
                "value": method.value,
                "checkpoint_of": method.checkpoint_of,
                "seeds": [report["seed"] for report in reports],
                "metrics": metrics,
                "seconds": seed_interval([report["seconds"] for report in reports]),
                "interrupted": any(report["interrupted"] for report in reports),
                "fits": max(report["fits"] for report in reports),
                "evaluation_seconds": seed_interval([report["evaluation_seconds"] for report in reports]),
                "peak_memory": max(report["peak_memory"] for report in reports),
                "peak_accelerator_memory": max(report.get("peak_accelerator_memory", 0) for report in reports),
                "settings": [report["settings"] for report in reports],
                "dates": sorted({report["date"] for report in reports}),
                "environments": _distinct(report["environment"] for report in reports),
                "comparisons": _comparisons(method, methods, results, table.metrics),
            }
        )
    return {
        "title": table.title,
        "written": date.today().isoformat(),
        "split": table.split,
        "metrics": list(table.metrics),
        "sweep": table.sweep,
        "seeds": [dataclasses.asdict(seed) for seed in table.seeds],
        "data": datasets,
        "methods": rows,
        "missing": _missing(table, results),
    }


def _missing(table: Table, results: dict[str, dict[int, Any]]) -> dict[str, list[int]]:
    """Seeds of training that rows of a table have no result for, by label."""
    missing = {
        method.label: [s.train for n, s in enumerate(table.seeds) if n not in results.get(method.label, {})]
        for method in table.methods
    }
    return {label: seeds for label, seeds in missing.items() if seeds}


def _reads_texts(method: Method) -> bool:
    from cllm4rec_hf.baselines.registry import REGISTRY

    entry = REGISTRY[str(method.baseline)]
    return entry.needs_texts or entry.uses_texts


def _distinct(values: Any) -> list[Any]:
    out: list[Any] = []
    for value in values:
        if value not in out:
            out.append(value)
    return out


def _comparisons(
    method: Method, methods: list[Method], results: dict[str, dict[int, Any]], metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each kind of opponent and each metric, the comparison with the strongest of that kind on that metric.

    A run of CLLM4Rec is compared with each of its ablations, too.
    """
    out: dict[str, dict[str, Any]] = {}
    mine = results[method.label]
    for name, belongs in OPPONENTS.items():
        others = [other for other in methods if other is not method and belongs(other)]
        # seeds differ more than methods do: those that share all seeds are compared, or else those that share most
        most = max((len(results[other.label].keys() & mine.keys()) for other in others), default=0)
        others = [other for other in others if len(results[other.label].keys() & mine.keys()) == most]
        for metric in metrics if most else ():
            # the strongest on the split itself: a higher bar than one chosen on validation
            best = max(others, key=lambda other: _mean_over(results[other.label], mine, metric))
            found = compare(mine, results[best.label], metric)
            out.setdefault(name, {})[metric] = {"opponent": best.label, **found}
    for other in methods:
        if _is_ablation(other, method) and results[other.label].keys() & mine.keys():
            out[f"ablation {other.settings['ablation']}"] = {
                metric: {"opponent": other.label, **compare(mine, results[other.label], metric)} for metric in metrics
            }
    return out


def _mean_over(results: dict[int, Any], seeds: dict[int, Any], metric: str) -> float:
    """Mean of a metric over the seeds that are among some others."""
    return float(np.mean([result.metrics[metric] for seed, (_, result) in results.items() if seed in seeds]))


def _is_ablation(method: Method, of: Method) -> bool:
    """Whether a method's settings are those of a run of CLLM4Rec and an ablation."""
    runs = method.group == of.group == "cllm4rec" and method.baseline is None and of.baseline is None
    without = {name: value for name, value in method.settings.items() if name != "ablation"}
    return runs and "ablation" in method.settings and without == of.settings


# ---- tables for people


def format_summary(summary: dict[str, Any]) -> str:
    """The table of means for a terminal."""
    rows = _rows(summary, bold=False)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown(summary: dict[str, Any]) -> str:
    """The contents of quality.md."""
    data = summary["data"][0]
    seeds = ", ".join(
        str(seed["train"]) if seed["train"] == seed["prepare"] else f"{seed['train']} (split {seed['prepare']})"
        for seed in summary["seeds"]
    )
    lines = [
        f"# {summary['title']}",
        "",
        f"{data['num_users']:,} users, {data['num_items']:,} items, {data['interactions']:,} interactions; the whole "
        f"catalog ranked for the {summary['split']} split. Seeds of split and training: {seeds}. Fingerprints of the "
        f"data: {', '.join(entry['fingerprint'] for entry in summary['data'])}.",
        "",
        f"`{summary['command']}`, {_dates(summary)}.",
        "",
        *_table(_rows(summary, bold=True)),
        "",
        "Means over seeds ± half of the 95 % t-interval. ▲ significantly better than the best other baseline on that "
        "metric, ▼ significantly worse: by the paired bootstrap over users, seeds pooled, 95 %; the best is the one "
        "that is strongest on this very split. Training time includes the choice of hyper-parameters on validation; "
        "each method ran in a process of its own, whose peak memory this is. Where the language model read the same "
        "texts for a row before, its states come from the cache, and the training is that much shorter.",
    ]
    lines += [
        f"\n{row['label']} is made of the checkpoint of {row['checkpoint_of']}, whose training is not in its time."
        for row in summary["methods"]
        if row["checkpoint_of"]
    ]
    compared = [row for row in summary["methods"] if row["group"] != "baseline" and row["comparisons"]]
    if compared:
        lines += ["", "## Paired differences", "", *_table(list(_differences(compared, summary["metrics"]))), ""]
        lines += [
            "Difference of the means over users, each user's metric averaged over seeds, with its 95 % bootstrap "
            "interval; p of the paired t-test and of Wilcoxon's signed-rank test; seeds: on how many of them the "
            "interval of that seed's difference lies above (below) 0."
        ]
    codes = {environment.get("code") for row in summary["methods"] for environment in row["environments"]} - {None}
    if len(codes) > 1:
        lines += ["", f"The rows were run by {len(codes)} states of the package's code, see quality.json."]
    chosen = [row for row in summary["methods"] if row["fits"] > 1]
    if chosen:
        lines += ["", "## Settings chosen on validation, by seed", ""]
        lines += [
            f"- {row['label']}: {'; '.join(_listed(settings) for settings in row['settings'])}" for row in chosen
        ]
    missing = {label: seeds for label, seeds in summary["missing"].items() if label not in summary["skipped"]}
    if summary["skipped"] or summary["failed"] or missing:
        # a competitor that has not run on all seeds of a row is no opponent of it where others have
        lines += ["", "## Not run, and not compared with", ""]
        lines += [f"- {name}: {reason}" for name, reason in {**summary["skipped"], **summary["failed"]}.items()]
        lines += [f"- {name}: seeds {', '.join(map(str, seeds))}" for name, seeds in missing.items()]
    return "\n".join(lines) + "\n"


def _table(rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return [lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]


def _rows(summary: dict[str, Any], bold: bool) -> list[list[str]]:
    metrics = summary["metrics"]
    # bold are the best of those that have run on most seeds
    most = max(len(row["seeds"]) for row in summary["methods"])
    complete = [row for row in summary["methods"] if len(row["seeds"]) == most]
    best = {name: max(row["metrics"][name]["mean"] for row in complete) for name in metrics}
    rows = [["method", *map(metric_label, metrics), "seeds", "training", "peak memory"]]
    for row in summary["methods"]:
        cells = []
        for name in metrics:
            figure = row["metrics"][name]
            text = f"{figure['mean']:.4f}"
            if figure["half_width"] is not None:
                text += f" ± {figure['half_width']:.4f}"
            if bold and row in complete and figure["mean"] == best[name]:
                text = f"**{text}**"
            cells.append(text + _mark(row["comparisons"].get("best baseline", {}).get(name)))
        memory = f"{row['peak_memory'] / 1e9:.2f} GB"
        if row["peak_accelerator_memory"]:
            memory += f" + {row['peak_accelerator_memory'] / 1e9:.2f} GB"
        rows.append([row["label"], *cells, str(len(row["seeds"])), _training(row), memory])
    return rows


def metric_label(name: str) -> str:
    """A metric's name for people."""
    metric, _, k = name.partition("@")
    return f"{'NDCG' if metric == 'ndcg' else metric.capitalize()}@{k}"


def _mark(comparison: dict[str, Any] | None) -> str:
    if comparison is None:
        return ""
    return " ▲" if comparison["pooled"]["low"] > 0 else " ▼" if comparison["pooled"]["high"] < 0 else ""


def _training(row: dict[str, Any]) -> str:
    # a training that was interrupted has taken this long at least
    text = ("≥ " if row["interrupted"] else "") + _duration(row["seconds"]["mean"])
    return text if row["fits"] == 1 else f"{text}, {row['fits']} fits"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _differences(rows: list[dict[str, Any]], metrics: list[str]) -> Any:
    yield ["method", "against", "metric", "ratio", "difference", "p (t)", "p (Wilcoxon)", "seeds"]
    for row in rows:
        for against, by_metric in row["comparisons"].items():
            for metric in metrics:
                found = by_metric[metric]
                pooled_difference = found["pooled"]
                low, high = pooled_difference["low"], pooled_difference["high"]
                above = sum(part["low"] > 0 for part in found["per_seed"])
                below = sum(part["high"] < 0 for part in found["per_seed"])
                yield [
                    row["label"],
                    f"{against}: {found['opponent']}",
                    metric_label(metric),
                    "-" if found["ratio"] is None else f"{found['ratio']:.3f}",
                    f"{pooled_difference['difference']:+.4f} [{low:+.4f}, {high:+.4f}]",
                    f"{found['p_t_test']:.1e}",
                    f"{found['p_wilcoxon']:.1e}",
                    f"{above} ({below}) of {len(found['per_seed'])}",
                ]


def _dates(summary: dict[str, Any]) -> str:
    days = sorted({day for row in summary["methods"] for day in row["dates"]})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _listed(settings: dict[str, Any]) -> str:
    parts = (
        f"{name} ({_listed(value)})" if isinstance(value, dict) else f"{name} {value}"
        for name, value in settings.items()
    )
    return ", ".join(parts) or "none"
