"""Retrieval by a language model's text embeddings, as M6-Rec does it (Cui et al., 2022)."""

import logging
from typing import Any

import numpy as np

from ..data.item_texts import item_documents
from ..data.prepared import Histories, PreparedData
from ..errors import DataError
from .base import ArrayBaseline
from .selection import Selection, select
from .text_encoder import affordable_length, embed_texts

logger = logging.getLogger(__name__)


class M6Retrieval(ArrayBaseline):
    """score(u, j) = cos(Σ_{i in history} t_i, t_j); nothing is trained.

    t: mean over an item's words of the hidden states of one layer of a language model, less the mean over all items
    (hidden states share a direction that would drown everything else), normalised. Encoder–decoder models are read
    at the encoder.

    Args:
        backbone: name of the language model, see `modeling.backbone_cllm4rec.locate_backbone`.
        layer: number of blocks the words pass through; 0 takes the word embeddings.
        max_length: words of a text that are read; None takes `text_encoder.affordable_length`.
    """

    model_type = "m6-retrieval"
    SETTINGS = ("backbone", "layer", "max_length")
    ARRAYS = ("vectors",)

    # blocks that `choose` tries, as far as the model has them
    LAYERS = (2, 4, 6, 9, 12, 18, 24)

    vectors: np.ndarray | None = None

    def __init__(self, backbone: str = "", layer: int = 6, max_length: int | None = None):
        if layer < 0 or (max_length is not None and max_length < 1):
            raise ValueError(f"Expected a layer of 0 or more and a max_length of 1 or more, got {layer}, {max_length}")
        self.backbone, self.layer, self.max_length = backbone, layer, max_length

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> "M6Retrieval":
        """Embed the items' texts; see `Baseline.fit_to`.

        Raises:
            ValueError: if the backbone is not named, or has fewer blocks than `layer`.
        """
        model = cls(**settings)
        documents, name = _documents(data), _named(model.backbone)
        return model._fit(model._read(documents, name, [model.layer])[model.layer])

    @classmethod
    def choose(cls, data: PreparedData, seed: int = 0, grid: Any = None, **settings: Any) -> Selection:
        """Choose the layer on validation, in one pass over the texts; see `Baseline.choose`.

        Args:
            data: prepared data.
            seed: makes no difference.
            grid: points that differ in `layer` alone; by default `LAYERS`, as far as the model has them.
            settings: `backbone` and `max_length`.
        """
        from ..modeling.backbone_cllm4rec import load_backbone_config

        model = cls(**settings)
        name = _named(model.backbone)
        if grid is None:
            depth = load_backbone_config(name).num_hidden_layers
            grid = [{"layer": layer} for layer in cls.LAYERS if layer <= depth] or [{"layer": depth}]
        points = [{**settings, **point} for point in grid]
        layers = [point["layer"] for point in points]
        vectors = model._read(_documents(data), name, layers)
        return select(lambda **point: cls(**point)._fit(vectors[point["layer"]]), points, data, cls.__name__)

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Cosines, [B, J] float32; see `Baseline.score`."""
        self._check_fitted()
        vectors: np.ndarray = self.vectors  # type: ignore[assignment]
        return _normalised(Histories.from_lists(histories, len(vectors)).to_csr() @ vectors) @ vectors.T

    def _read(self, documents: list[str], backbone: str, layers: list[int]) -> dict[int, np.ndarray]:
        return embed_texts(documents, backbone, layers, self.max_length or affordable_length(len(documents)))

    def _fit(self, means: np.ndarray) -> "M6Retrieval":
        """Centre and normalise; items without text (NaN) get the zero vector."""
        centred = means - np.nanmean(means, axis=0)
        self.vectors = _normalised(np.nan_to_num(centred)).astype(np.float32)
        return self


def _documents(data: PreparedData) -> list[str]:
    documents = item_documents(data)
    if not any(documents):
        raise DataError(
            "M6Retrieval needs texts of items, and there are none; prepare the data with --text-column (reviews) or "
            "--items and --item-text-columns"
        )
    return documents


def _named(backbone: str) -> str:
    if not backbone:
        raise ValueError("M6Retrieval needs a language model; name it by backbone=…, a Hub id, directory or GGUF file")
    return backbone


def _normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
