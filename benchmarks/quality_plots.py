"""The picture of a table: a dot with its interval for each method, or curves over the values of a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quality_report import metric_label


def is_geometric(values: Sequence[float]) -> bool:
    """Whether positive values, of which there are three or more, grow by some constant factor, give or take 15 %."""
    positive = np.array(sorted(value for value in values if value > 0))
    if len(positive) < 3:
        return False
    ratios = positive[1:] / positive[:-1]
    return bool(ratios.min() > 1 and ratios.max() <= 1.15 * ratios.min())


def draw(summary: dict[str, Any], file: Path) -> None:
    """Draw what quality.json says.

    Args:
        summary: its contents.
        file: PNG to write; complete before it takes its name.
    """
    from matplotlib.figure import Figure

    swept = [row for row in summary["methods"] if row["group"] == "sweep"]
    others = [row for row in summary["methods"] if row["group"] != "sweep"]
    metrics = summary["metrics"]
    height = 3.4 if swept else 1.1 + 0.3 * len(others)
    figure = Figure(figsize=(3.6 * len(metrics) + 1.2, height), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False, sharey=not swept)[0]
    for panel, metric in zip(axes, metrics, strict=True):
        if swept:
            _curve(panel, swept, others, metric)
            panel.set_xlabel(summary["sweep"])
        else:
            _dots(panel, others, metric)
        panel.set_title(metric_label(metric), fontsize=10)
    if swept and others:
        axes[0].legend(fontsize=7)
    if not swept:
        # tables are read from above
        axes[0].invert_yaxis()
    figure.suptitle(summary["title"], fontsize=11)
    beside = file.with_name(f"{file.name}.part")
    # without the library's version in its metadata, the same figures give the same file
    figure.savefig(beside, format="png", dpi=120, metadata={"Software": None})
    beside.replace(file)


def _dots(panel: Any, rows: list[dict[str, Any]], metric: str) -> None:
    for place, row in enumerate(rows):
        figure = row["metrics"][metric]
        colour = "C0" if row["group"] == "baseline" else "C3"
        panel.errorbar(figure["mean"], place, xerr=figure["half_width"], fmt="o", color=colour, capsize=3)
    panel.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
    panel.grid(axis="x", alpha=0.3)


def _curve(panel: Any, swept: list[dict[str, Any]], others: list[dict[str, Any]], metric: str) -> None:
    rows = sorted(swept, key=lambda row: row["value"])
    values = [row["value"] for row in rows]
    figures = [row["metrics"][metric] for row in rows]
    half_widths = [figure["half_width"] or 0.0 for figure in figures]
    panel.errorbar(values, [figure["mean"] for figure in figures], yerr=half_widths, fmt="o-", capsize=3)
    for number, row in enumerate(others, start=1):
        level = row["metrics"][metric]
        panel.axhline(level["mean"], color=f"C{number}", linestyle="--", label=row["label"])
        if level["half_width"]:
            bounds = level["mean"] - level["half_width"], level["mean"] + level["half_width"]
            panel.axhspan(*bounds, color=f"C{number}", alpha=0.12)
    if is_geometric(values):
        # 0 has a place on this axis, too, beside the least positive value
        least = min(value for value in values if value > 0)
        panel.set_xscale("symlog", linthresh=least) if min(values) <= 0 else panel.set_xscale("log")
        panel.set_xticks(values, [f"{value:g}" for value in values])
        # the library's margins would go on for decades below 0
        panel.set_xlim(-least / 3 if min(values) <= 0 else least / 2, 2 * max(values))
        panel.minorticks_off()
    panel.grid(alpha=0.3)
