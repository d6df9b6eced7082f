"""LightGCN (He et al., SIGIR 2020): embeddings smoothed over the graph of users and items."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import bmat, diags
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.prepared import Histories, PreparedData
from .neural import NeuralBaseline, NeuralConfig, draw_absent
from .selection import grid_of


class LightGCNConfig(NeuralConfig):
    """Settings of LightGCN.

    Args:
        embedding_size: d.
        num_layers: propagation steps K.
        embedding_penalty: weight of ½ (‖e_u‖² + ‖e_i‖² + ‖e_j‖²) of the unsmoothed embeddings, mean over triples.
    """

    model_type = "lightgcn"

    embedding_size: int = 64
    num_layers: int = 3
    embedding_penalty: float = 1e-2
    learning_rate: float = 5e-3


class LightGCN(NeuralBaseline):
    """E* = mean of E, ÂE, …, Â^K E with Â = D^-½ A D^-½, A the bipartite graph; score(u, j) = e*_u · e*_j.

    Loss, mean over the users' pairs (u, i), each with a random j that u does not have: −log ς(e*_u·e*_i − e*_u·e*_j)
    and the penalty. Known users only: histories make no difference.
    """

    config_class = LightGCNConfig
    GRID = grid_of(embedding_penalty=(1e-3, 1e-2, 3e-2, 1e-1), num_layers=(2, 3))

    # Â as a sparse [I + J, I + J] tensor while training
    graph: Tensor | None = None
    smooth: Tensor

    def __init__(self, config: LightGCNConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.num_users + config.num_items, config.embedding_size)
        # what training leaves for scoring
        self.register_buffer("smooth", torch.zeros(config.num_users + config.num_items, config.embedding_size))
        self.post_init()

    @classmethod
    def create(cls, data: PreparedData, **settings: Any) -> "LightGCN":
        """A fresh model with its graph; see `NeuralBaseline.create`."""
        model = super().create(data, **settings)
        model.graph = normalised_graph(data.histories("train"))
        return model

    def propagate(self) -> Tensor:
        """E*, [I + J, d]."""
        assert self.graph is not None
        layer = total = self.embeddings.weight
        graph = self.graph.to(self.device)
        for _ in range(self.config.num_layers):
            layer = torch.sparse.mm(graph, layer)
            total = total + layer
        return total / (self.config.num_layers + 1)

    def eval(self) -> "LightGCN":
        """Evaluation mode, in which scores come from embeddings that are smoothed once."""
        if self.training and self.graph is not None:
            with torch.no_grad():
                self.smooth.copy_(self.propagate())
        return super().eval()

    def item_scores(self, users: Tensor, histories: Sequence[np.ndarray]) -> Tensor:
        """Products of smoothed embeddings; see `NeuralBaseline.item_scores`."""
        return self.smooth[users] @ self.smooth[self.config.num_users :].T

    def loss(
        self, users: Tensor, histories: Sequence[np.ndarray], done: float, generator: np.random.Generator
    ) -> Tensor:
        """The pairwise loss; see `NeuralBaseline.loss`."""
        config = self.config
        rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        negatives = np.concatenate(
            [draw_absent(history, len(history), config.num_items, generator) for history in histories]
        )
        positives = np.concatenate(histories)
        nodes = (
            users[torch.from_numpy(rows).to(self.device)],
            *(
                torch.from_numpy(config.num_users + items.astype(np.int64)).to(self.device)
                for items in (positives, negatives)
            ),
        )
        smooth = self.propagate()
        user, positive, negative = (smooth[index] for index in nodes)
        ranking = F.softplus(-(user * (positive - negative)).sum(dim=-1)).mean()
        penalty = sum(self.embeddings(index).square().sum(dim=-1).mean() for index in nodes) / 2
        return ranking + config.embedding_penalty * penalty


def normalised_graph(train: Histories) -> Tensor:
    """Â = D^-½ A D^-½ of users and items, sparse [I + J, I + J] float32."""
    interactions = train.to_csr()
    adjacency = bmat([[None, interactions], [interactions.T, None]], format="csr")
    scale = diags(np.maximum(np.asarray(adjacency.sum(axis=1)).ravel(), 1.0) ** -0.5)
    graph = (scale @ adjacency @ scale).tocoo()
    indices = torch.from_numpy(np.stack([graph.row, graph.col]).astype(np.int64))
    values = torch.from_numpy(graph.data.astype(np.float32))
    return torch.sparse_coo_tensor(indices, values, graph.shape, check_invariants=True).coalesce()
