"""The parts of the training losses, each summed over the documents of a batch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# rows of logits held at once over a frozen vocabulary; 256 rows of 50,000 float32 logits take 51 MB
_CHUNK_ROWS = 256
# and over one that trains, where every chunk adds N x d numbers to the weights' gradient
_TRAINED_CHUNK_ROWS = 1024
# rows x items whose logits are held at once; with what the way back takes, some 0.8 GB
_ITEM_CELLS = 50_000_000


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    """Cross entropy through a frozen output matrix, in chunks of rows; the gradient is computed on the way forward.

    torch's own chunked `linear_cross_entropy` adds up a bfloat16 loss in bfloat16, several per cent off at 500 rows.
    """

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, target: Tensor
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        for start in range(0, hidden.shape[0], _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            index = target[rows].unsqueeze(1)
            logits = F.linear(hidden[rows], weight, bias).float()
            slope = None
            if softcap is not None:
                squashed = torch.tanh(logits / softcap)
                logits, slope = squashed * softcap, 1 - squashed**2
            own = logits.gather(1, index)
            largest = logits.amax(dim=-1, keepdim=True)
            # not normalized: dividing d numbers a row afterwards is cheaper than N before
            shares = logits.sub_(largest).exp_()
            sums = shares.sum(dim=-1, keepdim=True)
            total += (sums.log() + largest - own).sum()
            if gradient is not None:
                taken = weight[target[rows]].float()
                if slope is not None:
                    shares, taken = shares * slope, taken * slope.gather(1, index)
                gradient[rows] = ((shares.to(weight.dtype) @ weight).float() / sums - taken).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None, None, None


def vocabulary_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Sum of −log p(target) under the vocabulary's softmax, never holding all logits.

    Args:
        hidden: [R, d], float.
        weight: [N, d], same dtype as `hidden`.
        target: [R] int64 in [0, N).
        bias: [N] or None.
        softcap: bound c of logits squashed to c·tanh(logits / c), as some backbones do; None for plain logits.

    Returns:
        Scalar float32.
    """
    if not weight.requires_grad and (bias is None or not bias.requires_grad):
        return _FrozenHeadCrossEntropy.apply(hidden, weight, bias, softcap, target)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, hidden.shape[0], _TRAINED_CHUNK_ROWS):
        rows = slice(start, start + _TRAINED_CHUNK_ROWS)
        # computed again on the way back, so that the logits of one chunk at a time are held
        total = total + checkpoint(
            _chunk_cross_entropy, hidden[rows], weight, bias, softcap, target[rows],
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
    return total


def _chunk_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, target: Tensor
) -> Tensor:
    logits = soft_capped(F.linear(hidden, weight, bias), softcap)
    return F.cross_entropy(logits.float(), target, reduction="sum")


def soft_capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits squashed to c·tanh(logits / c), or as they are without a bound c."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def multinomial_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Sum over documents of −Σ_{j in hold-out} log p_j, one multinomial over all J items a document (RecLLM).

    Args:
        logits: [B, J] float32.
        target: [B, M] int64 item indices, −100 where a document has fewer hold-out items.

    Returns:
        Scalar float32.
    """
    valid = target >= 0
    picked = logits.gather(1, target.clamp(min=0))
    log_normalizer = torch.logsumexp(logits, dim=-1, keepdim=True)
    return ((log_normalizer - picked) * valid).sum()


def chunked_over_items(
    loss: Callable[[Tensor, Tensor], Tensor], query: Tensor, target: Tensor, num_items: int
) -> Tensor:
    """A sum over rows of queries, never holding more of their item logits than memory allows.

    Args:
        loss: from some rows of queries and targets to their sum; makes the logits.
        query: [R, d].
        target: [R, M] int64.
        num_items: columns J of the logits.

    Returns:
        Scalar float32.
    """
    rows = max(1, _ITEM_CELLS // num_items)
    if len(query) <= rows:
        return loss(query, target)
    # computed again on the way back, so that the logits of one chunk at a time are held
    parts = [
        checkpoint(loss, some, targets, use_reentrant=False, preserve_rng_state=False)
        for some, targets in zip(query.split(rows), target.split(rows), strict=True)
    ]
    return torch.stack(parts).sum()


def sampled_nll(positive: Tensor, sampled: Tensor, log_expected: Tensor, is_positive: Tensor, valid: Tensor) -> Tensor:
    """−Σ_{positives} log p with the rest of the catalog's softmax estimated from a sample of it.

    Z ≈ Σ_{positives} exp(l) + Σ_{s in sample, no positive} exp(l_s) / E[n_s], E[n_s] the expected number of times that
    the sample holds s: the log-q correction (Bengio and Senécal, 2008). Z is estimated without bias, and −log p with a
    bias that vanishes as the sample grows.

    Args:
        positive: [R, M] float32 logits of each row's positives.
        sampled: [R, S] float32 logits of the sample, the same items for every row.
        log_expected: [S] float32, log E[n_s].
        is_positive: [R, S] bool, where a sampled item is one of the row's positives.
        valid: [R, M] bool, False where a row has fewer positives.

    Returns:
        Scalar float32, the sum over rows and positives.
    """
    others = (sampled - log_expected).masked_fill(is_positive, -torch.inf)
    own = positive.masked_fill(~valid, -torch.inf)
    log_normalizer = torch.logsumexp(torch.cat([own, others], dim=-1), dim=-1, keepdim=True)
    return ((log_normalizer - positive) * valid).sum()


def distinct_rows(ids: Tensor, offset: int, size: int) -> tuple[Tensor, Tensor]:
    """The table rows that the documents mention, each counted once a document.

    Args:
        ids: [B, T] int64 token ids; anything outside the table is passed over.
        offset: token id of the table's row 0.
        size: number of rows of the table.

    Returns:
        rows [R] int64, ascending, and the number of documents that mention each, [R] int64.
    """
    document = torch.arange(ids.shape[0], device=ids.device).unsqueeze(1).expand_as(ids)
    inside = (ids >= offset) & (ids < offset + size)
    pairs = torch.unique(document[inside] * size + (ids[inside] - offset))
    return torch.unique(pairs % size, return_counts=True)


def mutual_regularization(
    ids: Tensor, offset: int, learning: nn.Embedding, fixed: nn.Embedding, lambda_c: float, prior: float = 0.0
) -> Tensor:
    """λ_c/2 · Σ ‖z − z'‖² over each document's distinct rows of one table, plus prior/2 · Σ ‖z‖².

    The fixed table receives no gradient (the L-step moves no content table, the C-step no collaborative one).

    Args:
        ids: [B, T] int64 token ids of whole documents, prompt and main text.
        offset: token id of the table's row 0.
        learning: the table, [R, d], that is being learned in this step.
        fixed: its counterpart.
        lambda_c: precision of the one around the other.
        prior: λ_l for the collaborative table, else 0.

    Returns:
        Scalar float32, the sum over documents.
    """
    rows, counts = distinct_rows(ids, offset, learning.weight.shape[0])
    z = learning(rows)
    with torch.no_grad():
        around = fixed(rows)
    squares = lambda_c * (z - around).pow(2).sum(-1)
    if prior:
        squares = squares + prior * z.pow(2).sum(-1)
    return 0.5 * (squares * counts).sum()
