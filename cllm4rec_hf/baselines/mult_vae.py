"""Mult-VAE (Liang, Krishnan, Hoffman, Jebara: Variational Autoencoders for Collaborative Filtering, WWW 2018)."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from .neural import (
    NeuralBaseline,
    NeuralConfig,
    kl_to_standard_normal,
    multinomial_loss,
    one_hot_rows,
    sample_normal,
)
from .selection import grid_of


class MultVAEConfig(NeuralConfig):
    """Settings of Mult-VAE.

    Args:
        hidden_size: size of the layers between catalog and latent.
        latent_size: size of z.
        dropout: share of the input that is dropped.
        beta: final weight of the KL term.
        anneal_epochs: passes in which that weight rises from 0, linearly.
    """

    model_type = "mult-vae"

    hidden_size: int = 600
    latent_size: int = 200
    dropout: float = 0.5
    beta: float = 0.2
    anneal_epochs: int = 50


class MultVAE(NeuralBaseline):
    """x → x/‖x‖ → dropout → tanh → z ~ N(μ, σ²) → tanh → softmax over the J items.

    Loss of a user: −Σ_j x_j log π_j(z) + β KL(q(z|x) ‖ N(0, 1)); scores are the logits at z = μ.
    """

    config_class = MultVAEConfig
    GRID = grid_of(beta=(0.2, 0.5, 1.0), weight_decay=(0.0, 0.1))

    def __init__(self, config: MultVAEConfig):
        super().__init__(config)
        self.encoder_in = nn.Linear(config.num_items, config.hidden_size)
        self.encoder_out = nn.Linear(config.hidden_size, 2 * config.latent_size)
        self.decoder_in = nn.Linear(config.latent_size, config.hidden_size)
        self.decoder_out = nn.Linear(config.hidden_size, config.num_items)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def encode(self, interactions: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(z|x), each [B, latent_size], of rows [B, J]."""
        hidden = self.encoder_in(self.dropout(F.normalize(interactions, dim=-1))).tanh()
        mean, log_variance = self.encoder_out(hidden).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """Logits [B, J] of z [B, latent_size]."""
        return self.decoder_out(self.decoder_in(latent).tanh())

    def item_scores(self, users: Tensor, histories: Sequence[np.ndarray]) -> Tensor:
        """Logits at z = μ; see `NeuralBaseline.item_scores`."""
        return self.decode(self.encode(one_hot_rows(histories, self.config.num_items, self.device))[0])

    def loss(
        self, users: Tensor, histories: Sequence[np.ndarray], done: float, generator: np.random.Generator
    ) -> Tensor:
        """The negative evidence bound with an annealed KL term; see `NeuralBaseline.loss`."""
        interactions = one_hot_rows(histories, self.config.num_items, self.device)
        mean, log_variance = self.encode(interactions)
        logits = self.decode(sample_normal(mean, log_variance))
        beta = self.config.beta * min(1.0, done / max(self.config.anneal_epochs, 1))
        return multinomial_loss(logits, interactions) + beta * kl_to_standard_normal(mean, log_variance)
