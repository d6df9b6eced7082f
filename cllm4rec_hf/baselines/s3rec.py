"""S3-Rec (Zhou et al., CIKM 2020): BERT4Rec pretrained to tie items, their attributes, sequences and segments."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.item_texts import require_item_texts
from ..data.prepared import Histories, PreparedData
from .bert4rec import BERT4Rec, BERT4RecConfig
from .neural import draw_absent
from .selection import grid_of


class S3RecConfig(BERT4RecConfig):
    """Settings of S3-Rec beside those of BERT4Rec.

    Args:
        num_attributes: size A of the attributes' vocabulary.
        max_attributes: bound of that size; the attributes of the most items are kept.
        attributes_per_item: words of an item's text with the highest TF-IDF that are its attributes.
        pretraining_epochs: epochs, as those of training, before the training of BERT4Rec.
        mask_probability: share of a sequence's items that are masked in pretraining.
        aap_weight: weight of associated attribute prediction; these four are those of the published code.
        mip_weight: weight of masked item prediction.
        map_weight: weight of masked attribute prediction.
        sp_weight: weight of segment prediction.
    """

    model_type = "s3-rec"

    num_attributes: int = 0
    max_attributes: int = 1000
    attributes_per_item: int = 10
    pretraining_epochs: int = 50
    mask_probability: float = 0.2
    aap_weight: float = 0.2
    mip_weight: float = 1.0
    map_weight: float = 1.0
    sp_weight: float = 0.5


class S3Rec(BERT4Rec):
    """BERT4Rec's network and its direct-recommendation loss, after pretraining by four mutual-information losses.

    e: item embeddings; a: attribute embeddings; F: hidden states of a sequence with masked items; s: hidden state of
    the mask token that starts every sequence; ς: sigmoid; each W a d x d matrix.
    AAP: binary cross-entropy of ς(e_iᵀ W a + b_a) for all attributes a, at the items that are not masked;
    MAP: the same of ς(F_tᵀ W a + b_a) at the masked ones;
    MIP: −log ς(F_tᵀ W e_i − F_tᵀ W e_i⁻) at the masked ones, i⁻ an item that the user does not have;
    SP: −log ς(sᵀ W s̃ − sᵀ W s̃⁻), s of the sequence with a segment masked, s̃ of this segment and s̃⁻ of a segment of
    another user. Losses are means over positions (AAP and MAP also divided by `attributes_per_item`) or users.
    Attributes are the telling words of an item's text: prepared data holds texts, in which categories and brands are
    words like others, where the paper's attributes are a column of their own.
    """

    config_class = S3RecConfig
    GRID = grid_of(dropout=(0.2, 0.5), sp_weight=(0.0, 0.5))

    # [J, A] float32 while training
    attributes: Tensor | None = None

    def __init__(self, config: S3RecConfig):
        super().__init__(config)
        self.attribute_embeddings = nn.Embedding(config.num_attributes, config.hidden_size)
        self.attribute_bias = nn.Parameter(torch.zeros(config.num_attributes))
        self.maps = nn.ModuleDict(
            {
                name: nn.Linear(config.hidden_size, config.hidden_size, bias=False)
                for name in ("aap", "mip", "map", "sp")
            }
        )
        self.post_init()

    @classmethod
    def create(cls, data: PreparedData, **settings: Any) -> "S3Rec":
        """A fresh model with the items' attributes; see `NeuralBaseline.create`."""
        config = cls.config_class(**settings)
        texts = require_item_texts(data, cls.__name__)
        attributes = top_words(texts, config.attributes_per_item, config.max_attributes)
        model = super().create(data, num_attributes=attributes.shape[1], **settings)
        model.attributes = torch.from_numpy(attributes)
        # without their base rates here, every item embedding would first learn the same vector, to say them
        model.attribute_bias.data = model.attributes.mean(dim=0).clamp(1e-4, 1 - 1e-4).logit()
        return model

    def pretraining_losses(self, train: Histories, generator: np.random.Generator) -> Iterator[Tensor]:
        """The weighted sum of the four losses; users with one item have nothing to tell."""
        users = np.flatnonzero(np.diff(train.indptr) > 1)
        for _ in range(self.config.pretraining_epochs * self.passes(train)):
            for batch in self.batches(users, generator):
                yield self.pretraining_loss([train[user] for user in batch], generator)

    def pretraining_loss(self, histories: list[np.ndarray], generator: np.random.Generator) -> Tensor:
        """The weighted sum of the four losses.

        Args:
            histories: items of some users, two or more each.
            generator: source of masks, negatives and segments.
        """
        config = self.config
        sequences = self.sequences(histories)
        is_item = sequences < config.num_items
        masked = self._mask(is_item, generator)
        hidden = self.encode(sequences.masked_fill(masked, self.mask_id))[masked]
        hidden_items, seen_items = sequences[masked], sequences[is_item & ~masked]
        loss = config.mip_weight * self.mip_loss(hidden, hidden_items, self._negatives(histories, masked, generator))
        loss = loss + config.map_weight * self.attribute_loss("map", hidden, hidden_items)
        if len(seen_items):
            embeddings = self.item_embeddings[seen_items]
            loss = loss + config.aap_weight * self.attribute_loss("aap", embeddings, seen_items)
        if config.sp_weight and len(histories) > 1:
            loss = loss + config.sp_weight * self.sp_loss(histories, generator)
        return loss

    def attribute_loss(self, name: str, vectors: Tensor, items: Tensor) -> Tensor:
        """AAP of item embeddings or MAP of hidden states [n, d], given their items [n]."""
        assert self.attributes is not None
        logits = F.linear(self.maps[name](vectors), self.attribute_embeddings.weight, self.attribute_bias)
        targets = self.attributes.to(self.device)[items]
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=-1).mean()
        return entropy / self.config.attributes_per_item

    def mip_loss(self, hidden: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        """MIP of hidden states [n, d] with their items [n] and items that the user does not have [n]."""
        mapped = self.maps["mip"](hidden)
        table = self.item_embeddings
        gap = (mapped * (table[items] - table[negatives])).sum(dim=-1)
        return F.softplus(-gap).mean()

    def sp_loss(self, histories: list[np.ndarray], generator: np.random.Generator) -> Tensor:
        """SP, with the segments of the batch's other users as negatives."""
        contexts, segments = [], []
        for history in (history[-self.config.max_length :] for history in histories):
            # at most half of a sequence, so that a context remains
            length = int(generator.integers(1, len(history) // 2 + 1))
            first = int(generator.integers(0, len(history) - length + 1))
            segment = slice(first, first + length)
            context = history.copy()
            context[segment] = self.mask_id
            contexts.append(context)
            segments.append(history[segment])
        context_states = self.encode(self.sequences(contexts))[:, 0]
        segment_states = self.encode(self.sequences(segments))[:, 0]
        # a turn of the batch gives each user the segment of another
        others = segment_states.roll(int(generator.integers(1, len(histories))), dims=0)
        gap = (self.maps["sp"](context_states) * (segment_states - others)).sum(dim=-1)
        return F.softplus(-gap).mean()

    def _mask(self, is_item: Tensor, generator: np.random.Generator) -> Tensor:
        """Random item positions, at least one in each row, as booleans [B, T]."""
        draws = torch.from_numpy(generator.random(tuple(is_item.shape))).to(self.device)
        draws = draws.masked_fill(~is_item, 2.0)
        return (draws < self.config.mask_probability) | (draws == draws.min(dim=-1, keepdim=True).values)

    def _negatives(self, histories: list[np.ndarray], masked: Tensor, generator: np.random.Generator) -> Tensor:
        """An item that the row's user does not have for each masked position, row by row."""
        counts, num_items = masked.sum(dim=-1).tolist(), self.config.num_items
        drawn = [draw_absent(*row, num_items, generator) for row in zip(histories, counts, strict=True)]
        return torch.from_numpy(np.concatenate(drawn)).to(self.device)


def top_words(texts: csr_matrix, per_item: int, most: int) -> np.ndarray:
    """The attributes of items: their words of the highest TF-IDF, among the words that are this for most items.

    Args:
        texts: [J, V] rows of TF-IDF.
        per_item: words of an item.
        most: words in all.

    Returns:
        [J, A] float32, ones at an item's attributes.
    """
    rows, columns = [], []
    for item in range(texts.shape[0]):
        start, stop = texts.indptr[item : item + 2]
        top = np.argsort(-texts.data[start:stop], kind="stable")[:per_item]
        columns.append(texts.indices[start:stop][top])
        rows.append(np.full(len(top), item))
    row, column = np.concatenate(rows), np.concatenate(columns)
    counts = np.bincount(column, minlength=texts.shape[1])
    kept = np.sort(np.argsort(-counts, kind="stable")[: min(most, int((counts > 0).sum()))])
    position = np.full(texts.shape[1], -1)
    position[kept] = np.arange(len(kept))
    chosen = np.zeros((texts.shape[0], len(kept)), dtype=np.float32)
    is_kept = position[column] >= 0
    chosen[row[is_kept], position[column[is_kept]]] = 1.0
    return chosen
