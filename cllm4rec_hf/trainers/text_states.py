"""What the backbone makes of the items' texts: a start for item vectors, and so for item tokens."""

import logging
from typing import Any

import numpy as np

from ..baselines.m6_retrieval import embed_texts
from ..data.item_texts import item_documents
from ..data.prepared import PreparedData
from ..modeling.backbone_cllm4rec import load_backbone_config

logger = logging.getLogger(__name__)

# blocks that the words pass through: deeper states of a causal model turn to the next word
_LAYER = 6
_LONGEST_TEXT, _SHORTEST_TEXT = 256, 32
# words that are read in all, as far as the shortest text allows: a minute or two of SmolLM2-135M on two cores
_WORDS = 300_000


def text_states(data: PreparedData, settings: Any) -> np.ndarray | None:
    """Mean hidden state of each item's texts, less the mean over the items.

    Hidden states share one large direction, which would drown everything else.

    Args:
        data: the prepared data.
        settings: the run's; `backbone`, `backbone_revision` and `num_layers` are read.

    Returns:
        [J, d] float32, zeros for items without text; None when there are no texts at all.
    """
    documents = item_documents(data)
    if not any(documents):
        return None
    config = load_backbone_config(settings.backbone, settings.backbone_revision, settings.num_layers)
    # the last block's output passes through a final norm, the others' does not
    layer = min(_LAYER, max(1, config.num_hidden_layers - 1))
    length = min(_LONGEST_TEXT, max(_SHORTEST_TEXT, _WORDS // data.num_items))
    length = min(length, getattr(config, "max_position_embeddings", None) or length)
    means = embed_texts(documents, settings.backbone, [layer], length, revision=settings.backbone_revision)[layer]
    return np.nan_to_num(means - np.nanmean(means, axis=0))
