"""All competitors by name; a class is imported when it is asked for."""

import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CLLM4RecError
from .storage import CONFIG_FILE


@dataclass(frozen=True)
class Entry:
    """Where a competitor is found, and what it needs.

    Args:
        module: its module in this package.
        class_name: its class, a `Baseline`.
        label: its name in tables.
        needs_texts: whether it cannot do without texts of items.
        uses_texts: whether it reads them where there are any.
        needs_backbone: whether it is given a language model, `backbone=…`.
        needs_checkpoint: whether it is given a trained CLLM4Rec model, `checkpoint=…`.
        package: library that it wraps, in the extra `baselines`.
    """

    module: str
    class_name: str
    label: str
    needs_texts: bool = False
    uses_texts: bool = False
    needs_backbone: bool = False
    needs_checkpoint: bool = False
    package: str | None = None


REGISTRY = {
    "popularity": Entry("popularity", "Popularity", "Popularity"),
    "ease": Entry("ease", "EASE", "EASE"),
    "mult-vae": Entry("mult_vae", "MultVAE", "Mult-VAE"),
    "lightgcn": Entry("lightgcn", "LightGCN", "LightGCN"),
    "bert4rec": Entry("bert4rec", "BERT4Rec", "BERT4Rec"),
    "implicit-als": Entry("implicit_als", "ImplicitALS", "ALS (implicit)", package="implicit"),
    "cornac-sasrec": Entry("cornac_sasrec", "CornacSASRec", "SASRec (cornac)", package="cornac"),
    "tfidf-neighbours": Entry("tfidf", "TfidfNeighbours", "TF-IDF neighbours", needs_texts=True),
    "ease-text": Entry("ease", "TextEASE", "EASE with text rows", needs_texts=True),
    "text-svd": Entry("text_svd", "TextSVD", "SVD with text rows", needs_texts=True),
    "two-tower": Entry("two_tower", "TwoTower", "Two-tower", uses_texts=True),
    "cllm4rec-emb": Entry("cllm4rec_emb", "CLLM4RecEmb", "CLLM4Rec-Emb", needs_checkpoint=True),
    "md-cvae": Entry("md_cvae", "MDCVAE", "MD-CVAE", needs_texts=True),
    "s3-rec": Entry("s3rec", "S3Rec", "S3-Rec", needs_texts=True),
    "m6-retrieval": Entry("m6_retrieval", "M6Retrieval", "M6 retrieval", needs_texts=True, needs_backbone=True),
    "pseudo-ids": Entry("pseudo_ids", "PseudoIds", "Pseudo-IDs", needs_backbone=True),
    "yes-no": Entry("yes_no", "YesNo", "Yes/no scorer", needs_texts=True, needs_backbone=True),
    "blend": Entry("blend", "Blend", "Blend of text models and Mult-VAE", needs_texts=True),
}


def baseline_class(name: str) -> Any:
    """The class of a competitor.

    Args:
        name: a key of `REGISTRY`.

    Raises:
        CLLM4RecError: if there is none of this name.
    """
    if name not in REGISTRY:
        raise CLLM4RecError(f"Unknown baseline {name!r}; expected one of {', '.join(REGISTRY)}")
    entry = REGISTRY[name]
    return getattr(importlib.import_module(f".{entry.module}", __package__), entry.class_name)


def load_baseline(directory: str | os.PathLike) -> Any:
    """Read a competitor of whatever kind `save_pretrained` wrote.

    Args:
        directory: where it lies.

    Raises:
        CLLM4RecError: if no competitor lies there.
    """
    file = Path(directory) / CONFIG_FILE
    if not file.is_file():
        raise CLLM4RecError(f"{directory} holds no {CONFIG_FILE}; expected a directory written by save_pretrained")
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise CLLM4RecError(f"{file} names no model_type; expected a directory written by save_pretrained") from error
    return baseline_class(name).from_pretrained(directory)
