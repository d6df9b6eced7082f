"""The item head: from a hidden state and the items of a history to one vector that scores the whole catalog."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_cllm4rec import CLLM4RecConfig

# hidden states behind the two item softmaxes are differently distributed, so each is centred by its own numbers
CALIBRATED_TASKS = ("collaborative", "recommendation")


class ItemHead(nn.Module):
    """Query vector of a context; item logits are query · Z^l_item (+ bias).

    query = a · (h − m) / s + γ · n^-ν (Σ_{i in history} q_i) R, where m, s are stored statistics of h, a the logit
    scale, n the history's items, q the query table of the history term (J x r) and R its basis (r x d, orthonormal
    rows). The second summand is a
    skip connection from the items of the prompt to the score; γ and q are learned. With neutral configuration the
    query is h itself: the tied head of the paper. Where the configuration gives the task no hidden states (`lm_term`,
    `lm_term_ranks`), it is the second summand alone.

    Args:
        config: says which parts exist.
    """

    log_logit_scale: Tensor
    log_history_scale: Tensor
    history_basis: Tensor

    def __init__(self, config: CLLM4RecConfig):
        super().__init__()
        size = config.hidden_size
        self.center_hidden = config.center_hidden
        if config.center_hidden:
            for task in CALIBRATED_TASKS:
                self.register_buffer(f"{task}_mean", torch.zeros(size, dtype=torch.float32))
                self.register_buffer(f"{task}_scale", torch.ones((), dtype=torch.float32))
        # logarithms: a step changes a scale by a share of itself, whatever its magnitude
        log_scale = torch.full((), math.log(config.logit_scale), dtype=torch.float32)
        if config.learn_logit_scale:
            self.log_logit_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_logit_scale", log_scale)
        self.item_bias = nn.Parameter(torch.zeros(config.num_items, dtype=torch.float32)) if config.item_bias else None
        self.history_queries: nn.Embedding | None = None
        if config.history_rank:
            self.log_history_scale = nn.Parameter(torch.zeros((), dtype=torch.float32))
            self.history_queries = nn.Embedding(config.num_items, config.history_rank, dtype=torch.float32)
            self.register_buffer("history_basis", torch.eye(config.history_rank, size, dtype=torch.float32))
        self._initial_logit_scale = config.logit_scale

    @property
    def logit_scale(self) -> Tensor:
        """a, the factor on the language model's part of the logits; scalar float32."""
        return self.log_logit_scale.exp()

    @property
    def history_scale(self) -> Tensor:
        """γ, the factor on the history term; scalar float32."""
        return self.log_history_scale.exp()

    @torch.no_grad()
    def reset(self) -> None:
        """Set every part to its neutral start: identity calibration, zero bias, a history term that adds nothing."""
        if self.center_hidden:
            for task in CALIBRATED_TASKS:
                getattr(self, f"{task}_mean").zero_()
                getattr(self, f"{task}_scale").fill_(1.0)
        self.log_logit_scale.fill_(math.log(self._initial_logit_scale))
        if self.item_bias is not None:
            self.item_bias.zero_()
        if self.history_queries is not None:
            self.log_history_scale.zero_()
            self.history_queries.weight.zero_()
            self.history_basis.copy_(torch.eye(self.history_basis.shape[0], self.history_basis.shape[1]))

    def center(self, hidden: Tensor, task: str) -> Tensor:
        """Hidden states [..., d] as float32, centred and scaled by the stored statistics of a task."""
        hidden = hidden.float()
        if not self.center_hidden:
            return hidden
        return (hidden - getattr(self, f"{task}_mean")) / getattr(self, f"{task}_scale")

    def item_queries(self, items: Tensor, is_item: Tensor) -> Tensor | None:
        """Rows of the history term's query table, [..., r] float32, 0 where there is no item; None without the term.

        Args:
            items: [...] int64 item indices, anything where `is_item` is false.
            is_item: [...] bool.
        """
        if self.history_queries is None:
            return None
        rows = self.history_queries(items[is_item])
        out = torch.zeros(*items.shape, rows.shape[-1], dtype=rows.dtype, device=rows.device)
        return out.index_put((is_item,), rows)

    def query(self, hidden: Tensor, history: Tensor | None, task: str) -> Tensor:
        """The vector that scores the catalog.

        Args:
            hidden: [R, d] hidden states of the backbone, or [R, 0] for none.
            history: [R, r] float32, the history's item queries, summed and divided by n^ν, or None.
            task: whose calibration applies, `collaborative` or `recommendation`.

        Returns:
            [R, d] float32.
        """
        if history is not None and not hidden.shape[-1]:
            return self.history(history)
        query = self.logit_scale * self.center(hidden, task)
        if history is not None:
            query = query + self.history(history)
        return query

    def history(self, queries: Tensor) -> Tensor:
        """The history term's part of a query, γ · n^-ν (Σ q_i) R, [..., d], from n^-ν Σ q_i, [..., r]."""
        return self.history_scale * (queries @ self.history_basis)

    def logits(self, query: Tensor, item_table: Tensor) -> Tensor:
        """Item logits [R, J] float32 from queries [R, d] and the item table [J, d]."""
        return F.linear(query, item_table, self.item_bias)

    def candidate_logits(self, query: Tensor, candidates: Tensor, items: Tensor) -> Tensor:
        """Logits of some items: [R, S] for candidates that every row shares, [R, M] for each row's own.

        Args:
            query: [R, d] float32.
            candidates: the items' rows of the item table, [S, d] or [R, M, d].
            items: their indices, [S] or [R, M] int64.
        """
        shared = candidates.dim() == 2
        logits = query @ candidates.T if shared else (candidates @ query.unsqueeze(-1)).squeeze(-1)
        return logits if self.item_bias is None else logits + self.item_bias[items]
