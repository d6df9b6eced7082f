"""CLLM4Rec-Emb: the token embeddings of a trained checkpoint in a two-tower model, without the language model."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.catalog import Catalog
from ..data.prepared import PreparedData
from ..errors import CLLM4RecError
from .neural import NeuralBaseline, NeuralConfig, multinomial_loss, one_hot_rows
from .selection import grid_of


class CLLM4RecEmbConfig(NeuralConfig):
    """Settings of CLLM4Rec-Emb.

    Args:
        hidden_size: dimension d of the checkpoint's token embeddings.
        output_size: of the space that both projections share.
        dropout: of the embeddings.
    """

    model_type = "cllm4rec-emb"

    hidden_size: int = 0
    output_size: int = 128
    dropout: float = 0.0


class CLLM4RecEmb(NeuralBaseline):
    """s · cos(W_u z_u + b_u, W_i z_j + b_i) of collaborative token embeddings z that stay as they are.

    The projections and the scale s are trained by a softmax over all items for the users' training items (Zhu et al.,
    2024). It shows what the embeddings know without the language model around them. A history beside the training
    items makes no difference: the user's token stands for it.
    """

    config_class = CLLM4RecEmbConfig
    GRID = grid_of(learning_rate=(1e-3, 3e-3), dropout=(0.0, 0.5))

    user_tokens: Tensor
    item_tokens: Tensor

    def __init__(self, config: CLLM4RecEmbConfig):
        super().__init__(config)
        self.register_buffer("user_tokens", torch.zeros(config.num_users, config.hidden_size))
        self.register_buffer("item_tokens", torch.zeros(config.num_items, config.hidden_size))
        self.user_projection = nn.Linear(config.hidden_size, config.output_size)
        self.item_projection = nn.Linear(config.hidden_size, config.output_size)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.post_init()

    @classmethod
    def create(cls, data: PreparedData, checkpoint: str | os.PathLike | None = None, **settings: Any) -> "CLLM4RecEmb":
        """A fresh model on a checkpoint's embeddings; see `NeuralBaseline.create`.

        Args:
            data: the prepared data that the checkpoint was trained on.
            checkpoint: directory or Hub id of a CLLM4Rec checkpoint.
            settings: fields of the configuration.

        Raises:
            CLLM4RecError: if no checkpoint is named, or it holds no token embeddings.
            DataError: if it was trained on other data.
        """
        from ..evaluation.report import check_trained_on

        if checkpoint is None:
            raise CLLM4RecError("CLLM4RecEmb needs a trained model; name its directory or Hub id by checkpoint=…")
        name = os.fspath(checkpoint)
        check_trained_on(name, Catalog.from_pretrained(name), data)
        users, items = _token_embeddings(name)
        model = super().create(data, hidden_size=users.shape[1], **settings)
        for buffer, table in ((model.user_tokens, users), (model.item_tokens, items)):
            # of unit size whatever the backbone, so that a learning rate means the same for all
            buffer.copy_(table / table.square().mean().sqrt().clamp(min=1e-12))
        return model

    def item_scores(self, users: Tensor, histories: Sequence[np.ndarray]) -> Tensor:
        """Scaled cosines; see `NeuralBaseline.item_scores`."""
        one = F.normalize(self.user_projection(self._dropped(self.user_tokens[users])), dim=-1)
        other = F.normalize(self.item_projection(self._dropped(self.item_tokens)), dim=-1)
        return self.log_scale.exp() * one @ other.T

    def loss(
        self, users: Tensor, histories: Sequence[np.ndarray], done: float, generator: np.random.Generator
    ) -> Tensor:
        """The training items' loss; see `NeuralBaseline.loss`."""
        targets = one_hot_rows(histories, self.config.num_items, self.device)
        return multinomial_loss(self.item_scores(users, histories), targets)

    def _dropped(self, tokens: Tensor) -> Tensor:
        return F.dropout(tokens, self.config.dropout, self.training)


def _token_embeddings(checkpoint: str) -> tuple[Tensor, Tensor]:
    """The collaborative tables of users [I, d] and items [J, d], without loading any backbone."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    file = cached_file(checkpoint, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    names = [f"collaborative_{kind}_embeddings.weight" for kind in ("user", "item")]
    if file is not None:
        with safe_open(file, "pt") as tensors:
            if set(names) <= set(tensors.keys()):
                users, items = (tensors.get_tensor(name) for name in names)
                return users, items
    raise CLLM4RecError(f"{checkpoint} holds no token embeddings; expected a checkpoint that `cllm4rec train` wrote")
