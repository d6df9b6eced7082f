"""The two-tower model: users and items in one space of 128 dimensions, ranked by a scaled cosine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.item_texts import item_text_matrix
from ..data.prepared import PreparedData
from .neural import NeuralBaseline, NeuralConfig, hold_out, multinomial_loss, one_hot_rows
from .selection import grid_of


class TwoTowerConfig(NeuralConfig):
    """Settings of the two-tower model.

    Args:
        embedding_size: of user ids and item ids.
        text_size: dimensions of the items' text features, a truncated SVD of their TF-IDF rows; 0 without texts.
        hidden_size: of the towers' hidden layer.
        output_size: of the space they share.
        dropout: of the towers' inputs.
        min_mask_share: least share of a history that is held out in training.
        max_mask_share: largest share.
    """

    model_type = "two-tower"

    embedding_size: int = 128
    text_size: int = 128
    hidden_size: int = 256
    output_size: int = 128
    dropout: float = 0.5
    min_mask_share: float = 0.1
    max_mask_share: float = 0.5


class TwoTower(NeuralBaseline):
    """s · cos(f(u, history), g(j)), trained by a softmax over all items for a held-out share of the history.

    f: the user's embedding beside the mean of the embeddings of the history's items; g: the item's embedding beside
    its text features; each through an MLP with one hidden layer. The scale s is learned.
    """

    config_class = TwoTowerConfig
    GRID = grid_of(learning_rate=(3e-4, 1e-3), weight_decay=(0.1, 1.0))

    item_texts: Tensor

    def __init__(self, config: TwoTowerConfig):
        super().__init__(config)
        self.users = nn.Embedding(config.num_users, config.embedding_size)
        self.items = nn.Embedding(config.num_items, config.embedding_size)
        self.register_buffer("item_texts", torch.zeros(config.num_items, config.text_size))

        def tower(size: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Dropout(config.dropout),
                nn.Linear(size, config.hidden_size),
                nn.ReLU(),
                nn.Linear(config.hidden_size, config.output_size),
            )

        self.user_tower = tower(2 * config.embedding_size)
        self.item_tower = tower(config.embedding_size + config.text_size)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.post_init()

    @classmethod
    def create(cls, data: PreparedData, **settings: Any) -> "TwoTower":
        """A fresh model with the items' text features; see `NeuralBaseline.create`."""
        from sklearn.utils.extmath import randomized_svd

        texts = item_text_matrix(data)
        size = settings.pop("text_size", cls.config_class.text_size)
        size = 0 if texts is None else min(size, *texts.shape)
        model = super().create(data, text_size=size, **settings)
        if size:
            left, singular, _ = randomized_svd(texts, size, n_iter=4, random_state=0)
            features = torch.from_numpy(left * singular)
            # the spread of the embeddings beside them
            spread = model.config.embedding_size**-0.5
            model.item_texts.copy_(features * spread / features.square().mean().sqrt())
        return model

    def item_vectors(self) -> Tensor:
        """g(j) of all items, normalised, [J, output_size]."""
        return F.normalize(self.item_tower(torch.cat([self.items.weight, self.item_texts], dim=-1)), dim=-1)

    def user_vectors(self, users: Tensor, histories: Sequence[np.ndarray]) -> Tensor:
        """f(u, history), normalised, [B, output_size]."""
        interactions = one_hot_rows(histories, self.config.num_items, self.device)
        mean = interactions @ self.items.weight / interactions.sum(dim=-1, keepdim=True).clamp(min=1)
        return F.normalize(self.user_tower(torch.cat([self.users(users), mean], dim=-1)), dim=-1)

    def item_scores(self, users: Tensor, histories: Sequence[np.ndarray]) -> Tensor:
        """Scaled cosines; see `NeuralBaseline.item_scores`."""
        return self.log_scale.exp() * self.user_vectors(users, histories) @ self.item_vectors().T

    def loss(
        self, users: Tensor, histories: Sequence[np.ndarray], done: float, generator: np.random.Generator
    ) -> Tensor:
        """The held-out items' loss; see `NeuralBaseline.loss`."""
        visible, masked = hold_out(histories, (self.config.min_mask_share, self.config.max_mask_share), generator)
        targets = one_hot_rows(masked, self.config.num_items, self.device)
        return multinomial_loss(self.item_scores(users, visible), targets)
