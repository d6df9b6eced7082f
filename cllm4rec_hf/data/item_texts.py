"""What training may read about each item, as one document an item and as rows of TF-IDF."""

import logging
from typing import TYPE_CHECKING

from ..errors import DataError
from .prepared import PreparedData

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

logger = logging.getLogger(__name__)


def item_documents(data: PreparedData) -> list[str]:
    """Everything that is written about each item in training: its own text and its train reviews.

    Args:
        data: the prepared data.

    Returns:
        J texts; the empty string for an item without any.
    """
    documents: list[list[str]] = [[] for _ in range(data.num_items)]
    for item, text in zip(data.texts["item"], data.texts["text"], strict=True):
        if item is not None:
            documents[item].append(text)
    return [" ".join(parts) for parts in documents]


def item_text_matrix(data: PreparedData) -> "csr_matrix | None":
    """Row-normalised TF-IDF of the items' documents, with sublinear counts of the words of two items or more.

    Args:
        data: the prepared data.

    Returns:
        [J, V] float64 sparse with rows of norm 1 (0 for items without text), or None when no word occurs in
        the texts of two items.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    documents = item_documents(data)
    if not any(documents):
        return None
    try:
        return TfidfVectorizer(sublinear_tf=True, min_df=min(2, data.num_items)).fit_transform(documents)
    except ValueError:
        logger.info("No word occurs in the texts of two items; there are no text rows")
        return None


def require_item_texts(data: PreparedData, name: str) -> "csr_matrix":
    """The rows of `item_text_matrix`, for a model that is nothing without them.

    Args:
        data: the prepared data.
        name: the model's name, for the error.

    Raises:
        DataError: if there are none.
    """
    texts = item_text_matrix(data)
    if texts is None:
        raise DataError(
            f"{name} needs texts of items, and no word occurs in the texts of two of the {data.num_items} items; "
            "prepare the data with --text-column (reviews) or --items and --item-text-columns"
        )
    return texts
