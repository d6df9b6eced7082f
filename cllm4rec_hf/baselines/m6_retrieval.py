"""Retrieval by a language model's text embeddings, as M6-Rec does it (Cui et al., 2022)."""

import logging
from typing import Any

import numpy as np

from ..data.item_texts import item_documents
from ..data.prepared import Histories, PreparedData
from ..errors import DataError
from .base import ArrayBaseline
from .selection import Selection, is_main_process, select

logger = logging.getLogger(__name__)


class M6Retrieval(ArrayBaseline):
    """score(u, j) = cos(Σ_{i in history} t_i, t_j); nothing is trained.

    t: mean over an item's words of the hidden states of one layer of a language model, less the mean over all items
    (hidden states share a direction that would drown everything else), normalised. Encoder–decoder models are read
    at the encoder.

    Args:
        backbone: name of the language model, see `modeling.backbone_cllm4rec.locate_backbone`.
        layer: number of blocks the words pass through; 0 takes the word embeddings.
        max_length: words of a text that are read.
    """

    model_type = "m6-retrieval"
    SETTINGS = ("backbone", "layer", "max_length")
    ARRAYS = ("vectors",)

    # blocks that `choose` tries, as far as the model has them
    LAYERS = (2, 4, 6, 9, 12, 18, 24)

    vectors: np.ndarray | None = None

    def __init__(self, backbone: str = "", layer: int = 6, max_length: int = 256):
        if layer < 0 or max_length < 1:
            raise ValueError(f"Expected a layer of 0 or more and a max_length of 1 or more, got {layer}, {max_length}")
        self.backbone, self.layer, self.max_length = backbone, layer, max_length

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> "M6Retrieval":
        """Embed the items' texts; see `Baseline.fit_to`.

        Raises:
            ValueError: if the backbone is not named, or has fewer blocks than `layer`.
        """
        model = cls(**settings)
        return model._fit(embed_texts(_documents(data), model.backbone, [model.layer], model.max_length)[model.layer])

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
        if grid is None:
            depth = load_backbone_config(_named(model.backbone)).num_hidden_layers
            grid = [{"layer": layer} for layer in cls.LAYERS if layer <= depth] or [{"layer": depth}]
        points = [{**settings, **point} for point in grid]
        layers = [point["layer"] for point in points]
        vectors = embed_texts(_documents(data), model.backbone, layers, model.max_length)
        return select(lambda **point: cls(**point)._fit(vectors[point["layer"]]), points, data, cls.__name__)

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Cosines, [B, J] float32; see `Baseline.score`."""
        self._check_fitted()
        vectors: np.ndarray = self.vectors  # type: ignore[assignment]
        return _normalised(Histories.from_lists(histories, len(vectors)).to_csr() @ vectors) @ vectors.T

    def _fit(self, means: np.ndarray) -> "M6Retrieval":
        """Centre and normalise; items without text (NaN) get the zero vector."""
        centred = means - np.nanmean(means, axis=0)
        self.vectors = _normalised(np.nan_to_num(centred)).astype(np.float32)
        return self


def embed_texts(
    texts: list[str],
    backbone: str,
    layers: list[int],
    max_length: int = 256,
    batch_size: int = 16,
    revision: str | None = None,
) -> dict[int, np.ndarray]:
    """Mean hidden states of texts under a pretrained language model.

    Args:
        texts: the texts; empty ones have no mean.
        backbone: the model's name.
        layers: numbers of blocks.
        max_length: words of a text that are read.
        batch_size: texts at once.
        revision: revision of the model's Hub repository.

    Returns:
        For each layer [len(texts), d] float32; NaN for empty texts.

    Raises:
        ValueError: if the backbone is not named, or has fewer blocks.
    """
    import torch
    from tqdm.auto import tqdm

    from ..modeling.backbone_cllm4rec import load_backbone, load_backbone_config
    from ..tokenization.base_tokenizer_cllm4rec import load_base
    from .neural import default_device

    depth = load_backbone_config(_named(backbone), revision).num_hidden_layers
    if max(layers) > depth:
        raise ValueError(f"The backbone {backbone!r} has {depth} layers; got layer {max(layers)}")
    tokenizer, _ = load_base(backbone, {"revision": revision} if revision else {}, with_rows=False)
    # one block more than is read: the last one's output passes through a final norm, the others' does not
    loaded = load_backbone(backbone, revision, num_layers=min(max(layers) + 1, depth), dtype=torch.float32)
    model: Any = loaded.get_encoder() if loaded.config.is_encoder_decoder else loaded.base_model
    model.eval().to(default_device())
    ids = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] if text else [] for text in texts]
    filled = sorted((k for k in range(len(texts)) if ids[k]), key=lambda k: len(ids[k]))
    means = {layer: np.full((len(texts), model.config.hidden_size), np.nan, dtype=np.float32) for layer in layers}
    starts = range(0, len(filled), batch_size)
    for start in tqdm(starts, desc="Embedding texts", unit="batch", delay=2, disable=not is_main_process()):
        batch = filled[start : start + batch_size]
        rows = [torch.tensor(ids[k]) for k in batch]
        words = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        mask = mask.to(model.device)
        with torch.no_grad():
            states = model(input_ids=words, attention_mask=mask, output_hidden_states=True).hidden_states
        weights = mask[..., None] / mask.sum(dim=1)[:, None, None]
        for layer in means:
            means[layer][batch] = (states[layer] * weights).sum(dim=1).float().cpu().numpy()
    return means


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
