"""SASRec of the library cornac, under this package's interface (Kang and McAuley, ICDM 2018)."""

import importlib
import os
from typing import Any

import numpy as np

from ..data.prepared import Histories, PreparedData
from . import storage
from .base import ArrayBaseline
from .selection import grid_of

_LOG_DRAWS = "log_draws"


class CornacSASRec(ArrayBaseline):
    """A causal transformer that is trained to predict each user's next item, in the order of the interactions.

    The library's softmax is over the targets of a batch and negatives drawn by popularity to the power ½. An item that
    is among them n_j times on average learns log p(j | history) − log n_j, so log n_j is added to its score: ranked
    without it, popular items would come last.

    Args:
        num_items: size J of the catalog; set by `fit_to`.
        embedding_dim: d.
        num_blocks: transformer blocks.
        num_heads: attention heads of each.
        max_len: most recent items that are read.
        dropout: of hidden states and attention.
        n_epochs: passes over the data.
        learning_rate: of Adam.
    """

    model_type = "cornac-sasrec"
    GRID = grid_of(n_epochs=(3, 10, 30, 60))
    SETTINGS = (
        "num_items", "embedding_dim", "num_blocks", "num_heads", "max_len", "dropout", "n_epochs", "learning_rate",
    )  # fmt: skip
    ARRAYS = ("weights", "log_draws")

    # the network's parameters by name
    weights: dict[str, np.ndarray] | None = None
    # log n_j, [J] float32
    log_draws: np.ndarray | None = None

    def __init__(
        self,
        num_items: int = 0,
        embedding_dim: int = 64,
        num_blocks: int = 2,
        num_heads: int = 1,
        max_len: int = 50,
        dropout: float = 0.2,
        n_epochs: int = 30,
        learning_rate: float = 1e-3,
    ):
        self.num_items, self.embedding_dim, self.num_blocks, self.num_heads = (
            num_items, embedding_dim, num_blocks, num_heads,
        )  # fmt: skip
        self.max_len, self.dropout, self.n_epochs, self.learning_rate = max_len, dropout, n_epochs, learning_rate
        self._network: Any = None

    @classmethod
    def fit_to(cls, data: PreparedData, seed: int = 0, **settings: Any) -> "CornacSASRec":
        """Train on each user's items in order; see `Baseline.fit_to`.

        Raises:
            ModuleNotFoundError: if the library is not installed.
        """
        import torch

        models, dataset = _import("cornac.models"), _import("cornac.data").SequentialDataset
        model = cls(num_items=data.num_items, **settings)
        train = data.histories("train")
        rows = [(user, user, int(item), k) for user in range(len(train)) for k, item in enumerate(train[user])]
        # ids that are indices already keep the library from numbering items anew
        sessions = dataset.build(
            rows, fmt="USIT", global_iid_map={item: item for item in range(data.num_items)}, seed=seed
        )
        library = models.SASRec(
            embedding_dim=model.embedding_dim,
            num_blocks=model.num_blocks,
            num_heads=model.num_heads,
            max_len=model.max_len,
            dropout=model.dropout,
            n_epochs=model.n_epochs,
            learning_rate=model.learning_rate,
            seed=seed,
        )
        with torch.random.fork_rng():
            library.fit(sessions)
        model.weights = {name: value.numpy() for name, value in library.model.state_dict().items()}
        model.log_draws = _log_draws(train, library.batch_size, library.n_sample, library.sample_alpha)
        return model

    def score(self, users: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        """Products of the last state and the item embeddings, plus log n_j, [B, J] float32; see `Baseline.score`."""
        import torch

        self._check_fitted()
        padded = torch.full((len(histories), self.max_len), self.num_items)
        for row, history in enumerate(histories):
            recent = torch.from_numpy(history[-self.max_len :].astype(np.int64))
            padded[row, self.max_len - len(recent) :] = recent
        scores = self._build().predict(None, padded).reshape(len(histories), self.num_items)
        return scores + self.log_draws

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write config.json and model.safetensors."""
        self._check_fitted()
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        assert self.weights is not None and self.log_draws is not None
        storage.save(directory, self.model_type, settings, {**self.weights, _LOG_DRAWS: self.log_draws})

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> "CornacSASRec":
        """Read what `save_pretrained` wrote.

        Raises:
            CLLM4RecError: if no such model lies there.
        """
        settings, weights = storage.load(directory, cls.model_type)
        model = cls(**settings)
        model.log_draws = weights.pop(_LOG_DRAWS)
        model.weights = weights
        return model

    def _build(self) -> Any:
        """The library's network with these weights; built once."""
        if self._network is None:
            import torch

            network = _import("cornac.models.sasrec.sasrec").SASRecModel(
                self.num_items,
                embedding_dim=self.embedding_dim,
                maxlen=self.max_len,
                n_layers=self.num_blocks,
                n_heads=self.num_heads,
                use_biases=False,
                dropout=self.dropout,
                pad_idx=self.num_items,
            )
            network.load_state_dict({name: torch.from_numpy(value) for name, value in (self.weights or {}).items()})
            self._network = network.eval()
        return self._network


def _log_draws(train: Histories, batch_size: int, n_sample: int, alpha: float) -> np.ndarray:
    """log n_j, how often an item is expected among the targets and negatives of a step, [J] float32.

    Targets are all but the first item of each history of two or more.
    """
    targets = np.concatenate([train[user][1:] for user in range(len(train))])
    counts = np.bincount(targets, minlength=train.num_items)
    # the library draws from all training items; one that is never drawn counts as if it occurred once in the data
    popularity = np.maximum(np.bincount(train.items, minlength=train.num_items), 1.0) ** alpha
    as_target = min(batch_size, len(targets)) * counts / max(len(targets), 1)
    return np.log(as_target + n_sample * popularity / popularity.sum()).astype(np.float32)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "CornacSASRec needs the library cornac: pip install 'cllm4rec-hf[baselines]'"
        ) from error
