"""MD-CVAE (Zhu and Chen: Mutually-Regularized Dual Collaborative Variational Auto-encoder, WWW 2022)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.item_texts import require_item_texts
from ..data.prepared import Histories, PreparedData
from .neural import (
    NeuralBaseline,
    NeuralConfig,
    kl_to_standard_normal,
    multinomial_loss,
    one_hot_rows,
    sample_normal,
)
from .selection import grid_of


class MDCVAEConfig(NeuralConfig):
    """Settings of MD-CVAE.

    Args:
        num_words: size of the vocabulary V.
        max_words: bound of that size; the words of the most items are kept.
        item_size: size of the item embeddings v and of the content's latent z.
        latent_size: size of the users' latent u.
        content_hidden_size: size of the layers between words and z.
        dropout: share of a user's input that is dropped.
        beta: final weight of the users' KL term.
        anneal_epochs: passes in which that weight rises from 0, linearly.
        lambda_v: precision λ of v around z.
        pretraining_epochs: passes over the texts before the alternation.
    """

    model_type = "md-cvae"

    num_words: int = 0
    max_words: int = 4000
    item_size: int = 200
    latent_size: int = 100
    content_hidden_size: int = 200
    dropout: float = 0.5
    beta: float = 0.2
    anneal_epochs: int = 50
    lambda_v: float = 100.0
    pretraining_epochs: int = 20


class ContentVAE(nn.Module):
    """w → tanh → z ~ N(μ, σ²) → tanh → softmax over the words.

    Args:
        config: sizes.
    """

    def __init__(self, config: MDCVAEConfig):
        super().__init__()
        self.encoder_in = nn.Linear(config.num_words, config.content_hidden_size)
        self.encoder_out = nn.Linear(config.content_hidden_size, 2 * config.item_size)
        self.decoder_in = nn.Linear(config.item_size, config.content_hidden_size)
        self.decoder_out = nn.Linear(config.content_hidden_size, config.num_words)

    def encode(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(z|w), each [B, item_size], of rows [B, V]."""
        mean, log_variance = self.encoder_out(self.encoder_in(F.normalize(words, dim=-1)).tanh()).chunk(2, dim=-1)
        return mean, log_variance

    def loss(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """−Σ_w x_w log π_w(z) + KL, mean over items, and μ [B, item_size]."""
        mean, log_variance = self.encode(words)
        logits = self.decoder_out(self.decoder_in(sample_normal(mean, log_variance)).tanh())
        return multinomial_loss(logits, words) + kl_to_standard_normal(mean, log_variance), mean


class MDCVAE(NeuralBaseline):
    """A user VAE whose item weights V and the latent item embeddings Z of a text VAE regularize each other.

    Users: x → x/‖x‖ → dropout → tanh(x V + a) → u ~ N(μ, σ²) → tanh → h → softmax(h Vᵀ + b). V is both the first
    layer and the last, the symmetric form that the paper gives for items which few or no users have.
    Items: see `ContentVAE`; a text counts as many draws as it has different words, weighted by TF-IDF.
    Epochs alternate between the two:
    users, Z fixed: mean over users of [−Σ_j x_j log π_j(u) + β KL] + λ/(2 I) Σ_j ‖v_j − z_j‖²;
    items, V fixed: mean over items of [−Σ_w x_w log π_w(z) + KL + λ/2 ‖μ_j − v_j‖²].
    """

    config_class = MDCVAEConfig
    GRID = grid_of(lambda_v=(10.0, 100.0, 1000.0), weight_decay=(0.0, 0.3))

    # [J, V] float32 while training
    words: csr_matrix | None = None

    def __init__(self, config: MDCVAEConfig):
        super().__init__(config)
        self.items = nn.Embedding(config.num_items, config.item_size)
        self.encoder_bias = nn.Parameter(torch.zeros(config.item_size))
        self.encoder_out = nn.Linear(config.item_size, 2 * config.latent_size)
        self.decoder_in = nn.Linear(config.latent_size, config.item_size)
        self.item_bias = nn.Parameter(torch.zeros(config.num_items))
        self.content = ContentVAE(config)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    @classmethod
    def create(cls, data: PreparedData, **settings: Any) -> "MDCVAE":
        """A fresh model with the bags of words that it trains on; see `NeuralBaseline.create`."""
        texts = require_item_texts(data, cls.__name__)
        most = settings.get("max_words", cls.config_class.max_words)
        # words of many items first, and the first of equals
        kept = np.argsort(-texts.getnnz(axis=0), kind="stable")[:most]
        words = texts[:, np.sort(kept)].astype(np.float32)
        sums = np.maximum(np.asarray(words.sum(axis=1)).ravel(), 1e-12)
        model = super().create(data, num_words=words.shape[1], **settings)
        model.words = csr_matrix(words.multiply((words.getnnz(axis=1) / sums)[:, None]), dtype=np.float32)
        return model

    def encode(self, interactions: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(u|x), each [B, latent_size], of rows [B, J]."""
        hidden = self.dropout(F.normalize(interactions, dim=-1)) @ self.items.weight + self.encoder_bias
        mean, log_variance = self.encoder_out(hidden.tanh()).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """Logits [B, J] of u [B, latent_size]."""
        return F.linear(self.decoder_in(latent).tanh(), self.items.weight, self.item_bias)

    def item_scores(self, users: Tensor, histories: Sequence[np.ndarray]) -> Tensor:
        """Logits at u = μ; see `NeuralBaseline.item_scores`."""
        return self.decode(self.encode(one_hot_rows(histories, self.config.num_items, self.device))[0])

    def loss(
        self, users: Tensor, histories: Sequence[np.ndarray], done: float, generator: np.random.Generator
    ) -> Tensor:
        """The users' loss without the regularization; see `NeuralBaseline.loss`."""
        interactions = one_hot_rows(histories, self.config.num_items, self.device)
        mean, log_variance = self.encode(interactions)
        logits = self.decode(sample_normal(mean, log_variance))
        beta = self.config.beta * min(1.0, done / max(self.config.anneal_epochs, 1))
        return multinomial_loss(logits, interactions) + beta * kl_to_standard_normal(mean, log_variance)

    def losses(self, train: Histories, done: int, generator: np.random.Generator) -> Iterator[Tensor]:
        """User steps against the present Z, then item steps against the present V."""
        content = self.content_means()
        for loss in super().losses(train, done, generator):
            gap = (self.items.weight - content).square().sum()
            yield loss + self.config.lambda_v / (2 * self.config.num_users) * gap
        for items in self.batches(np.arange(self.config.num_items), generator):
            loss, mean = self.content.loss(self._rows(items))
            target = self.items.weight[torch.from_numpy(items).to(self.device)].detach()
            yield loss + self.config.lambda_v / 2 * (mean - target).square().sum(dim=-1).mean()

    def pretraining_losses(self, train: Histories, generator: np.random.Generator) -> Iterator[Tensor]:
        """The text VAE alone."""
        for _ in range(self.config.pretraining_epochs):
            for items in self.batches(np.arange(self.config.num_items), generator):
                yield self.content.loss(self._rows(items))[0]

    @torch.no_grad()
    def content_means(self) -> Tensor:
        """Z, the means of q(z|w) of all items, [J, item_size]."""
        parts = np.array_split(np.arange(self.config.num_items), -(-self.config.num_items // 1000))
        return torch.cat([self.content.encode(self._rows(items))[0] for items in parts])

    def _rows(self, items: np.ndarray) -> Tensor:
        assert self.words is not None
        return torch.from_numpy(self.words[items].toarray()).to(self.device)
