"""The model card of a checkpoint directory, from what lies in it."""

import json
import logging
import os
import re
import shutil
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from . import __version__

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
CURVES_FILE = "training_curves.png"
SETTINGS_FILE = "training.yaml"
LOG_FILE = "training_log.json"

_MARK = "<!-- Written by cllm4rec. Remove this line to keep a text of your own. -->"
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")
_SHOWN = (
    "ablation", "num_layers", "warm_start", "history_term", "lambda_c", "mask_share", "content_epochs",
    "pretraining_epochs", "recommendation_epochs", "recommendation_learning_rate", "batch_size", "dtype", "seed",
)  # fmt: skip


def about_run(meta: dict[str, Any], backbone: str, revision: str | None = None) -> dict[str, Any]:
    """What a card says of a run beside its settings: versions, the data and its filters, the backbone's licence.

    Args:
        meta: meta.json of the prepared data.
        backbone: name of the backbone.
        revision: revision of its Hub repository.
    """
    return {
        "version": __version__,
        "libraries": {name: metadata.version(name) for name in ("torch", "transformers")},
        "data": {name: meta.get(name) for name in ("source", "rules", "seed", "steps", "splits")},
        "backbone_license": backbone_license(backbone, revision),
    }


def backbone_license(backbone: str, revision: str | None = None) -> str | None:
    """The licence that a backbone's model card or GGUF file names, or None where it names none or cannot be reached.

    Args:
        backbone: Hub id, directory, GGUF file or `package://PACKAGE/FILE`.
        revision: revision of its Hub repository.
    """
    from huggingface_hub import ModelCard
    from transformers.utils import cached_file

    from .modeling.backbone_cllm4rec import locate_backbone

    path, gguf_file = locate_backbone(backbone)
    name = os.path.join(path, gguf_file or "")
    if gguf_file and os.path.isfile(name):
        from gguf import GGUFReader

        field = GGUFReader(name).fields.get("general.license")
        return None if field is None else str(field.contents())
    card = cached_file(
        path,
        CARD_FILE,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if card is None:
        return None
    stated = ModelCard(Path(card).read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    return str(stated["license"]) if stated.get("license") else None


def write_card(directory: Path, repo_id: str | None = None, dataset: str | None = None) -> None:
    """Write README.md and the picture of the training curves.

    The card says what the model is, what it was trained on and how, and its metrics once evaluation.json is there. One
    without this module's mark is somebody's own text and is left alone.

    Args:
        directory: a checkpoint with config.json, and training.yaml where the recipe made it.
        repo_id: the Hub repository that it is written for; by default the card speaks of the directory's name.
        dataset: Hub id of the data set, where it has one.
    """
    from huggingface_hub import ModelCard

    card = directory / CARD_FILE
    if card.is_file() and _MARK not in card.read_text(encoding="utf-8"):
        logger.info("%s was written by hand and is left as it is", card)
        return
    config = _read_json(directory / "config.json")
    file = directory / SETTINGS_FILE
    settings = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {"preset": config["preset"]}
    report = _read_json(directory / "evaluation.json")
    model_id = repo_id or directory.resolve().name
    backbone = _public_name(config.get("backbone_name_or_path"))
    if settings.get("train_backbone") and not settings.get("random_backbone"):
        # its weights are the checkpoint's own by now, and began as those
        backbone = _public_name(settings["backbone"])
    about = settings.get("about") or {}
    content = ModelCard.from_template(
        _metadata(model_id, backbone, about, report, dataset),
        template_str=files("cllm4rec_hf").joinpath("model_cards", "template.md").read_text(encoding="utf-8"),
        mark=_MARK,
        name=model_id.rpartition("/")[2],
        model_id=model_id,
        num_users=f"{config['num_users']:,}",
        num_items=f"{config['num_items']:,}",
        num_layers=settings.get("num_layers"),
        backbone=f"`{backbone}`" if backbone else f"a {config['text_config']['model_type']} language model",
        includes_backbone=config["includes_backbone"],
        lm_term=config.get("lm_term", True) and config.get("lm_term_ranks", True),
        example=json.dumps(example) if (example := _example(directory)) else None,
        histories=(directory / "catalog_histories.parquet").is_file(),
        data=about.get("data"),
        settings=settings,
        shown_settings=[(name, settings[name]) for name in _SHOWN if settings.get(name) is not None],
        version=about.get("version", __version__),
        curves=_draw_curves(directory),
        report=report,
        metrics=_metrics(report),
        rows=_rows(report),
        backbone_license=about.get("backbone_license"),
    )
    beside = directory / f"{CARD_FILE}.part"
    content.save(beside)
    beside.replace(card)


def publish_documents(home: str | None, directory: Path, repo_id: str, dataset: str | None = None) -> None:
    """Put what a checkpoint's directory says of it beside what is uploaded, without a path of this machine.

    Args:
        home: the checkpoint's own directory; anything else says nothing.
        directory: what is uploaded.
        repo_id: the Hub repository it goes to, which the card speaks of.
        dataset: Hub id of the data set, where it has one.
    """
    if home and os.path.isdir(home):
        for pattern in (CARD_FILE, LOG_FILE, SETTINGS_FILE, "evaluation*.json"):
            for path in Path(home).glob(pattern):
                shutil.copy(path, directory / path.name)
    if (directory / SETTINGS_FILE).is_file():
        settings = yaml.safe_load((directory / SETTINGS_FILE).read_text(encoding="utf-8"))
        if _public_name(settings["backbone"]) is None:
            settings["backbone"] = Path(settings["backbone"]).name
        (directory / SETTINGS_FILE).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    write_card(directory, repo_id, dataset)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _public_name(backbone: str | None) -> str | None:
    """A backbone's name where it means the same to everybody: a Hub id or a file of a package, no local path."""
    if not backbone or Path(backbone).exists():
        return None
    name = backbone.removeprefix("package://")
    return backbone if name != backbone or _HUB_ID.fullmatch(backbone) else None


def _metadata(
    model_id: str, backbone: str | None, about: dict[str, Any], report: dict[str, Any] | None, dataset: str | None
) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    data: dict[str, Any] = {
        "library_name": "cllm4rec_hf",
        "pipeline_tag": "recommendation",
        "tags": ["recommendation", "collaborative-filtering", "cllm4rec"],
        "model_name": model_id.rpartition("/")[2],
    }
    if about.get("backbone_license"):
        data["license"] = about["backbone_license"]
    if backbone and _HUB_ID.fullmatch(backbone):
        data["base_model"] = backbone
    source = (about.get("data") or {}).get("source") or "interactions"
    dataset = dataset or (source.removeprefix("hub:") if source.startswith("hub:") else None)
    if dataset:
        data["datasets"] = [dataset]
    if report is not None:
        data["eval_results"] = [
            EvalResult(
                task_type="recommendation",
                task_name="Recommendation (full ranking)",
                dataset_type=dataset or "private",
                dataset_name=dataset or source,
                dataset_split=report["split"],
                metric_type=metric,
                metric_name=metric.replace("ndcg", "NDCG").replace("recall", "Recall"),
                metric_value=report[metric],
            )
            for metric in _metrics(report)
        ]
    return ModelCardData(**data)


def _metrics(report: dict[str, Any] | None) -> list[str]:
    return [] if report is None else [name for name in report if "@" in name]


def _rows(report: dict[str, Any] | None) -> list[list[str]]:
    if report is None:
        return []
    rows = {"CLLM4Rec": report, **report.get("baselines", {})}
    return [
        [method, *(f"{r[m]:.4f} [{r['intervals'][m][0]:.4f}, {r['intervals'][m][1]:.4f}]" for m in _metrics(report))]
        for method, r in rows.items()
    ]


def _example(directory: Path) -> list[str]:
    """The first items of the catalog: they say nothing of anybody."""
    import pyarrow.parquet as pq

    if not (directory / "catalog_items.parquet").is_file():
        return []
    with pq.ParquetFile(directory / "catalog_items.parquet") as file:
        ids = next(file.iter_batches(batch_size=3, columns=["item_id"]), None)
        return [] if ids is None else ids["item_id"].to_pylist()


def _draw_curves(directory: Path) -> str | None:
    """Draw each stage's losses and the validation metrics; the picture's name, or None where there is none."""
    log = _read_json(directory / LOG_FILE)
    if not log:
        return None
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        logger.info("The card has no picture of the training curves; pip install 'cllm4rec-hf[card]' draws them")
        return None
    panels = [panel for stage, entries in log.items() for panel in _panels(stage, entries)]
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(10.5, 2.6 * rows), layout="constrained")
    for number, (title, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, 3, number)
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=name)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
        if len(curves) > 1:
            axes.legend(fontsize=7)
    beside = directory / f"{CURVES_FILE}.part"
    # without the library's version in its metadata, the same run gives the same file
    figure.savefig(beside, format="png", dpi=110, metadata={"Software": None})
    beside.replace(directory / CURVES_FILE)
    return CURVES_FILE


def _panels(stage: str, entries: list[dict[str, Any]]) -> list[tuple[str, dict[str, list[tuple[float, float]]]]]:
    """One panel for each loss of a stage, for their sizes differ, and one for the validation metrics."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        for name, value in entry.items():
            is_metric = name.startswith("eval_") and "@" in name
            if is_metric or (name.endswith(("_lm_loss", "_rec_loss")) and not name.startswith("eval_")):
                curves.setdefault(name, []).append((entry["epoch"], value))
    metrics = {name.removeprefix("eval_"): curves.pop(name) for name in list(curves) if name.startswith("eval_")}
    panels = [(f"{stage}: {name} a document", {name: points}) for name, points in curves.items()]
    return panels + ([(f"{stage}: validation", metrics)] if metrics else [])
