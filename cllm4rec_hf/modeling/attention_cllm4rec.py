"""Attention within documents of unequal length that lie end to end in one row, so that layers compute no padding."""

import inspect
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# the value of `attn_implementation` that stands for this file
DOCUMENT_ATTENTION = "cllm4rec_documents"

# what layers of some families pass on to their attention, beyond products and masks
_NOT_COMPUTED = ("s_aux", "position_bias")
_LAYER_TYPES = {"full_attention", "sliding_attention"}

# what a group of documents costs in every layer, measured on a CPU in cells of a document's products: a token's
# copies, and the group's own calls
_TOKEN_CELLS, _GROUP_CELLS = 30, 9000
# up to this length, plain products are faster on CPUs than scaled_dot_product_attention's backward in bfloat16
_SHORT = 512


class DocumentLayout:
    """Where the tokens of a padded batch lie in one row, document by document, and which documents attend together.

    Args:
        mask: [B, T], 1 for tokens and 0 for padding, on either side.

    Attributes:
        groups: for each group of documents of similar length, its shape (documents, longest), the row's token of each
            of its cells (any token behind a document's end), and the cells of its tokens in the order of the row.
        source: [P] int64, the cell of the flattened batch that each token of the row comes from.
        position: [1, P] int64, each token's position in its document.
        target: [B * T] int64, the token of the row that belongs to each cell; any token where there is padding.
    """

    def __init__(self, mask: Tensor):
        present = mask.detach().to("cpu", torch.bool)
        rows, width = present.shape
        lengths = present.sum(dim=1)
        order = torch.argsort(lengths, descending=True, stable=True)
        lengths = lengths[order]
        # longest documents first, so that a group's tokens follow one another
        cells = (torch.argsort(~present, dim=1, stable=True) + torch.arange(rows).unsqueeze(1) * width)[order]
        columns = torch.arange(width)
        inside = columns < lengths.unsqueeze(1)
        source = cells[inside]
        target = torch.zeros(rows * width, dtype=torch.int64)
        target[source] = torch.arange(len(source))
        starts = lengths.cumsum(0) - lengths
        device = mask.device
        self.groups: list[tuple[tuple[int, int], Tensor, Tensor]] = []
        first = 0
        for count, longest in group_documents(lengths.tolist()):
            members = slice(first, first + count)
            own = inside[members, :longest]
            tokens = (starts[members].unsqueeze(1) + columns[:longest]) * own
            self.groups.append(
                ((count, longest), tokens.flatten().to(device), own.flatten().nonzero().squeeze(1).to(device))
            )
            first += count
        self.source, self.target = source.to(device), target.to(device)
        self.position = columns.expand(rows, -1)[inside].unsqueeze(0).to(device)


def group_documents(lengths: list[int]) -> list[tuple[int, int]]:
    """Cut a descending list of lengths into groups so that attention over them, padding included, costs least.

    Args:
        lengths: tokens of each document, longest first.

    Returns:
        (documents, longest) of each group.
    """
    # runs of equal length are never worth cutting
    ends = [k for k in range(1, len(lengths) + 1) if k == len(lengths) or lengths[k] != lengths[k - 1]]
    starts = [0, *ends[:-1]]
    # least cost of the first so many documents, and where their last group begins
    cost, back = {0: 0}, {}
    for end in ends:
        cost[end], back[end] = min(
            (cost[start] + group_cost(end - start, lengths[start]), start) for start in starts if start < end
        )
    groups = []
    end = len(lengths)
    while end:
        groups.append((end - back[end], max(1, lengths[back[end]])))
        end = back[end]
    return groups[::-1]


def group_cost(documents: int, longest: int) -> int:
    """Cost of attention over a group, in cells of the products; see `_TOKEN_CELLS`."""
    return documents * longest * (longest + _TOKEN_CELLS) + _GROUP_CELLS


class _Spread(torch.autograd.Function):
    """From a row [P, …] to a group's cells; `index` says which token a cell takes, `own` where the tokens went."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, index: Tensor, own: Tensor, first: int) -> Tensor:
        ctx.save_for_backward(own)
        ctx.row, ctx.first = row.shape, first
        return row.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        # nothing attends to the cells behind a document's end, so no gradient comes from there
        (own,) = ctx.saved_tensors
        tokens = gradient.index_select(0, own)
        if len(tokens) == ctx.row[0]:
            return tokens, None, None, None
        row = gradient.new_zeros(ctx.row)
        row[ctx.first : ctx.first + len(tokens)] = tokens
        return row, None, None, None


# a compiled layer calls it as it is: its shapes differ from batch to batch
@torch.compiler.disable
def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: DocumentLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each document to itself, as transformers calls an attention implementation.

    Padding stands behind a document's tokens, where causal attention does not look.

    Args:
        module: the attention layer.
        query: [1, H, P, D].
        key: [1, K, P, D], with K a divisor of H.
        value: [1, K, P, D].
        attention_mask: not used where `documents` is given.
        scaling: factor on the products; D^-½ by default.
        dropout: share of the attention weights that is dropped.
        documents: where the documents lie; without it, any batch is attended to by `sdpa`.
        sliding_window: how many tokens, itself included, a token looks back; None for all.
        softcap: bound c of products squashed to c·tanh(product / c).
        kwargs: further arguments of transformers' attention functions.

    Returns:
        [1, P, H, D] and None.
    """
    if documents is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    further = [name for name in _NOT_COMPUTED if kwargs.get(name) is not None]
    if further:
        raise NotImplementedError(
            f"The attention of {type(module).__name__} has {further[0]}, which {DOCUMENT_ATTENTION} does not compute; "
            "load the backbone with attn_implementation='sdpa' or 'eager'"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    outputs, first = [], 0
    for (count, length), index, own in documents.groups:
        last, is_full = first + len(own), len(own) == len(index)
        q, k, v = (
            (states[first:last] if is_full else _Spread.apply(states, index, own, first))
            .unflatten(0, (count, length))
            .transpose(1, 2)
            for states in (query, key, value)
        )
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and length <= _SHORT
        if plain or softcap is not None:
            out = _by_products(q, k, v, scaling, dropout, window, softcap)
        else:
            mask = None if window is None else _causal(length, window, q.device, torch.bool)
            out = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            )
        tokens = out.transpose(1, 2).flatten(0, 1)
        outputs.append(tokens if is_full else tokens.index_select(0, own))
        first = last
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0), None


def _by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention [B, H, L, D] of queries [B, H, L, D] to keys and values [B, K, L, D] by two matrix products."""
    batch, heads, length, size = query.shape
    groups = heads // key.shape[1]
    # query heads that share a key are rows of one product
    rows = (query * scaling).reshape(batch, -1, groups * length, size)
    products = (rows @ key.transpose(-1, -2)).view(batch, -1, groups, length, length)
    if softcap is not None:
        products = softcap * torch.tanh(products / softcap)
    products = products + _causal(length, window, query.device, query.dtype)
    # reduced precisions are added up in float32 inside
    weights = torch.softmax(products, dim=-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    out = weights.view(batch, -1, groups * length, length) @ value
    return out.view(batch, heads, length, size)


@lru_cache(maxsize=64)
def _causal(length: int, window: int | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[L, L] mask of causal attention: bool, True where a token looks, or 0 and −inf."""
    look = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if window is not None:
        look = look.triu(1 - window)
    if dtype == torch.bool:
        return look
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill(~look, -torch.inf)


def encode_documents(decoder: nn.Module, embedded: Tensor, mask: Tensor | None) -> Tensor:
    """Hidden states of a padded batch from a decoder that attends by `document_attention`.

    Args:
        decoder: the layers of a backbone.
        embedded: [B, T, d].
        mask: [B, T], 1 for tokens and 0 for padding; None for no padding.

    Returns:
        [B, T, d]; those of padding are not defined.
    """
    shape = embedded.shape
    if mask is None:
        mask = torch.ones(shape[:2], dtype=torch.bool, device=embedded.device)
    layout = DocumentLayout(mask)
    row = embedded.flatten(0, 1)[layout.source].unsqueeze(0)
    # a mask of four dimensions keeps transformers from making one of P x P
    no_mask = embedded.new_ones(1, 1, 1, 1)
    hidden = decoder(
        inputs_embeds=row, attention_mask=no_mask, position_ids=layout.position, use_cache=False, documents=layout
    ).last_hidden_state
    return hidden[0][layout.target].view(shape)


def attends_by_document(backbone: Any) -> bool:
    """Whether a backbone's layers are to be called by `encode_documents`."""
    return backbone.config._attn_implementation == DOCUMENT_ATTENTION


def choose_attention(backbone: Any) -> None:
    """Set the attention implementation that measures best, unless the backbone has another one than the default.

    Args:
        backbone: a language model whose loader was not told what attention to use.
    """
    if backbone.config._attn_implementation != "sdpa":
        return
    if _supports_documents(backbone):
        backbone.set_attn_implementation(DOCUMENT_ATTENTION)
    elif backbone.device.type == "cpu" and backbone.dtype == torch.bfloat16:
        backbone.set_attn_implementation("eager")


def _supports_documents(backbone: Any) -> bool:
    config = backbone.config
    return (
        not config.is_encoder_decoder
        and getattr(backbone, "_supports_attention_backend", False)
        and set(getattr(config, "layer_types", None) or ()) <= _LAYER_TYPES
        and "position_ids" in inspect.signature(backbone.get_decoder().forward).parameters
    )


AttentionInterface.register(DOCUMENT_ATTENTION, document_attention)
AttentionMaskInterface.register(DOCUMENT_ATTENTION, sdpa_mask)
