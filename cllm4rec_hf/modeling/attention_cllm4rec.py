"""Attention within documents of unequal length that lie end to end in one row, so that layers compute no padding."""

import inspect
from dataclasses import dataclass
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

# a further group of documents costs about as much as so many padding tokens in every layer
_GROUP_TOKENS = 16
# up to this length, plain products are faster on CPUs than scaled_dot_product_attention's backward in bfloat16
_SHORT = 512


@dataclass
class DocumentLayout:
    """Where documents lie in one row: groups of documents of similar length, each padded to its group's longest.

    Args:
        groups: (documents, length) of each group, in the order of the row.
        source: [P] int64, the cell of the flattened [B, T] batch that each token of the row comes from.
        position: [1, P] int64, each token's position in its document.
        target: [B * T] int64, the token of the row that belongs to each cell; any token where there is padding.
    """

    groups: list[tuple[int, int]]
    source: Tensor
    position: Tensor
    target: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> "DocumentLayout":
        """The layout of a padded batch.

        Args:
            mask: [B, T], 1 for tokens and 0 for padding, on either side.
        """
        present = mask.detach().to("cpu", torch.bool)
        rows, width = present.shape
        lengths = present.sum(dim=1)
        order = torch.argsort(lengths, descending=True, stable=True)
        # the cells of each document, those with tokens first
        cells = torch.argsort(~present, dim=1, stable=True) + torch.arange(rows).unsqueeze(1) * width
        groups, sources, positions = [], [], []
        start = 0
        for count, length in group_documents(lengths[order].tolist()):
            members = order[start : start + count]
            sources.append(cells[members, :length].reshape(-1))
            positions.append(torch.arange(length).repeat(count))
            groups.append((count, length))
            start += count
        source = torch.cat(sources)
        target = torch.zeros(rows * width, dtype=torch.int64)
        target[source] = torch.arange(len(source))
        device = mask.device
        return cls(groups, source.to(device), torch.cat(positions).unsqueeze(0).to(device), target.to(device))


def group_documents(lengths: list[int]) -> list[tuple[int, int]]:
    """Cut a descending list of lengths into groups so that padding and the number of groups cost least together.

    Args:
        lengths: tokens of each document, longest first.

    Returns:
        (documents, longest) of each group.
    """
    # cost[k]: least cost of the first k documents; runs of equal length are never worth cutting
    ends = [k for k in range(1, len(lengths) + 1) if k == len(lengths) or lengths[k] != lengths[k - 1]]
    starts = [0, *ends[:-1]]
    cost, back = {0: 0}, {}
    for end in ends:
        cost[end], back[end] = min(
            (cost[start] + (end - start) * lengths[start] + _GROUP_TOKENS, start) for start in starts if start < end
        )
    groups = []
    end = len(lengths)
    while end:
        groups.append((end - back[end], max(1, lengths[back[end]])))
        end = back[end]
    return groups[::-1]


def computed_tokens(mask: Tensor) -> int:
    """Tokens that layers compute for a batch with this mask [B, T], the padding within groups included."""
    lengths = mask.sum(dim=1).sort(descending=True).values.tolist()
    return sum(count * length for count, length in group_documents(lengths))


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
    outputs, start = [], 0
    for count, length in documents.groups:
        end = start + count * length
        q, k, v = (x[start:end].unflatten(0, (count, length)).transpose(1, 2) for x in (query, key, value))
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and length <= _SHORT
        if plain or softcap is not None:
            out = _by_products(q, k, v, scaling, dropout, window, softcap)
        else:
            mask = None if window is None else _causal(length, window, q.device, torch.bool)
            out = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
        start = end
    return torch.cat(outputs).unsqueeze(0), None


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
    layout = DocumentLayout.of(mask)
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
