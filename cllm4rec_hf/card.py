"""The model card of a checkpoint directory, from what lies in it."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import yaml

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"

_MARK = "<!-- Written by cllm4rec. Remove this line to keep a text of your own. -->"

_TEXT = """# {name}

A CLLM4Rec recommender (Zhu et al., *Collaborative Large Language Model for Recommender Systems*, WWW 2024) for
{num_users:,} users and {num_items:,} items on a frozen {backbone} backbone, trained by the `{preset}` recipe of
cllm4rec_hf. `training.yaml` holds every setting, `catalog_items.parquet` the items' ids and titles.

```python
from cllm4rec_hf import Recommender

recommender = Recommender.from_pretrained("{name}")
```

It ranks the catalog it was trained on for people whose history of interactions is known. It repeats the biases of that
history: popular items are recommended more often, and what users never saw cannot have been liked.
{results}"""


def write_card(directory: Path) -> None:
    """Write README.md: metadata for the Hub, what the model is, and its metrics once evaluation.json is there.

    A card without this module's mark is somebody's own text and is left alone.

    Args:
        directory: a checkpoint with config.json and training.yaml.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    card = directory / CARD_FILE
    if card.is_file() and _MARK not in card.read_text(encoding="utf-8"):
        logger.info("%s was written by hand and is left as it is", card)
        return
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    settings = yaml.safe_load((directory / "training.yaml").read_text(encoding="utf-8"))
    file = directory / "evaluation.json"
    report = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    name = directory.resolve().name
    metrics: list[str] = [] if report is None else [key for key in report if "@" in key]
    data: dict[str, Any] = {
        "library_name": "cllm4rec_hf",
        "tags": ["recommendation", "cllm4rec"],
        "model_name": name,
    }
    backbone = config.get("backbone_name_or_path") or ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", backbone) and not Path(backbone).exists():
        data["base_model"] = backbone
    if report is not None:
        data["eval_results"] = [
            EvalResult(
                task_type="recommendation",
                dataset_type="private",
                dataset_name="the prepared data",
                dataset_split=report["split"],
                metric_type=metric,
                metric_value=report[metric],
            )
            for metric in metrics
        ]
    text = _TEXT.format(
        name=name,
        num_users=config["num_users"],
        num_items=config["num_items"],
        backbone=config["text_config"]["model_type"],
        preset=settings["preset"],
        results="" if report is None else _results(report, metrics),
    )
    beside = directory / f"{CARD_FILE}.part"
    beside.write_text(f"---\n{ModelCardData(**data).to_yaml()}\n---\n{_MARK}\n{text}", encoding="utf-8")
    ModelCard.load(beside)
    beside.replace(card)


def _results(report: dict[str, Any], metrics: list[str]) -> str:
    rows = {"CLLM4Rec": report, **report.get("baselines", {})}
    lines = [
        "\n## Results",
        f"Full ranking on the {report['split']} split, {report['num_users']:,} users, 95 % bootstrap intervals.\n",
        f"| method | {' | '.join(metrics)} |",
        f"|---|{'---|' * len(metrics)}",
    ]
    for method, row in rows.items():
        cells = [f"{row[m]:.4f} [{row['intervals'][m][0]:.4f}, {row['intervals'][m][1]:.4f}]" for m in metrics]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
