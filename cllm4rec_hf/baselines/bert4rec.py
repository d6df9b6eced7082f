"""BERT4Rec (Sun et al., CIKM 2019) in the direct-recommendation form that the CLLM4Rec paper compares with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from .neural import NeuralBaseline, NeuralConfig, hold_out, multinomial_loss, one_hot_rows
from .selection import grid_of


class BERT4RecConfig(NeuralConfig):
    """Settings of BERT4Rec.

    Args:
        hidden_size: d.
        num_layers: transformer blocks.
        num_heads: attention heads of each.
        dropout: of hidden states and of attention.
        max_length: most recent items that are read.
        min_mask_share: least share of a history that is held out in training.
        max_mask_share: largest share.
    """

    model_type = "bert4rec"

    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.2
    max_length: int = 200
    min_mask_share: float = 0.1
    max_mask_share: float = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not 0 <= self.min_mask_share <= self.max_mask_share <= 1:
            raise ValueError(
                "Expected 0 ≤ min_mask_share ≤ max_mask_share ≤ 1, got "
                f"{self.min_mask_share} and {self.max_mask_share}"
            )


class BERT4Rec(NeuralBaseline):
    """A bidirectional transformer reads the history that is left and a mask token, whose output ranks all items.

    The sequence is the mask token, then the items from the newest to the oldest, so that a position means the same
    in histories of any length. Logits are LayerNorm(gelu(W h_mask)) Eᵀ + b with the item embeddings E. Loss of a
    user: −Σ_{j held out} log p_j, one multinomial over all J items.
    """

    config_class = BERT4RecConfig
    GRID = grid_of(dropout=(0.2, 0.5), learning_rate=(3e-4, 1e-3))

    def __init__(self, config: BERT4RecConfig):
        super().__init__(config)
        self.mask_id, self.padding_id = config.num_items, config.num_items + 1
        self.encoder = BertModel(
            BertConfig(
                vocab_size=config.num_items + 2,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=4 * config.hidden_size,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                max_position_embeddings=config.max_length + 1,
                type_vocab_size=1,
                pad_token_id=self.padding_id,
            ),
            add_pooling_layer=False,
        )
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.item_bias = nn.Parameter(torch.zeros(config.num_items))
        self.post_init()

    @property
    def item_embeddings(self) -> Tensor:
        """E, [J, d]."""
        return self.encoder.get_input_embeddings().weight[: self.config.num_items]

    def sequences(self, histories: Sequence[np.ndarray]) -> Tensor:
        """Token ids [B, T] int64: the mask token, the items from the newest to the oldest, padding."""
        rows = [torch.from_numpy(history[-self.config.max_length :][::-1].astype(np.int64)) for history in histories]
        start = torch.tensor([self.mask_id])
        padded = nn.utils.rnn.pad_sequence([torch.cat([start, row]) for row in rows], True, self.padding_id)
        return padded.to(self.device)

    def encode(self, sequences: Tensor) -> Tensor:
        """Hidden states [B, T, d] of token ids [B, T]."""
        return self.encoder(sequences, attention_mask=(sequences != self.padding_id).long()).last_hidden_state

    def item_scores(self, users: Tensor, histories: Sequence[np.ndarray]) -> Tensor:
        """Logits at the mask token; see `NeuralBaseline.item_scores`."""
        hidden = self.norm(F.gelu(self.transform(self.encode(self.sequences(histories))[:, 0])))
        return F.linear(hidden, self.item_embeddings, self.item_bias)

    def loss(
        self, users: Tensor, histories: Sequence[np.ndarray], done: float, generator: np.random.Generator
    ) -> Tensor:
        """The held-out items' loss; see `NeuralBaseline.loss`."""
        visible, masked = hold_out(histories, (self.config.min_mask_share, self.config.max_mask_share), generator)
        targets = one_hot_rows(masked, self.config.num_items, self.device)
        return multinomial_loss(self.item_scores(users, visible), targets)
