"""Calibration of the item head: the statistics that centre hidden states, and the size of the LM's logits."""

import logging
import math
from typing import Any

import numpy as np
import torch

from ..data.corpora import DocumentKey, InteractionCorpus

logger = logging.getLogger(__name__)

# states whose logits are compared; each takes a row of the catalog's size
_ROWS = 512


@torch.no_grad()
def calibrate_head(
    model: Any,
    corpus: InteractionCorpus,
    collator: Any,
    lm_share: float | None = None,
    num_documents: int = 256,
    batch_size: int = 16,
    seed: int = 0,
) -> None:
    """Measure the hidden states that the head will see and store their mean and scale in it.

    The last hidden states of a pretrained model share one large vector, which moves every item's logit alike; without
    centring, each gradient step goes along it. A head that does not centre has its logit scale set alone; one that
    does without hidden states is left as it is.

    Args:
        model: a CLLM4Rec model with a task head.
        corpus: interaction documents; their task says which statistics are set.
        collator: their collator.
        lm_share: if given, the logit scale is set so that the language model's logits have this share of the history
            term's standard deviation over the catalog; without a history term, this standard deviation itself.
        num_documents: documents to measure on.
        batch_size: documents in a forward pass.
        seed: seed of their choice.
    """
    head = model.item_head
    if not model.config.lm_term or (not head.center_hidden and lm_share is None):
        return
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = generator.permutation(len(corpus))[:num_documents]
    states, histories = [], []
    was_training = model.training
    model.eval()
    for start in range(0, len(chosen), batch_size):
        features = [
            {"task": corpus.task, "key": DocumentKey(0, int(index), 0), **corpus[int(index)]}
            for index in chosen[start : start + batch_size]
        ]
        batch = {name: x.to(model.device) for name, x in collator(features).items() if name != "task"}
        hidden, history = model.item_contexts(task=corpus.task, **batch)
        states.append(hidden.float())
        if history is not None:
            histories.append(history)
    model.train(was_training)
    rows = torch.cat(states)
    mean = rows.mean(dim=0)
    scale = (rows - mean).pow(2).mean().sqrt().clamp(min=1e-6)
    if head.center_hidden:
        getattr(head, f"{corpus.task}_mean").copy_(mean)
        getattr(head, f"{corpus.task}_scale").copy_(scale)
    if lm_share is not None:
        some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:_ROWS].to(rows.device)
        items = model.collaborative_item_embeddings.weight
        spread = _spread(head.center(rows[some], corpus.task) @ items.T)
        target = lm_share * (_spread(head.history(torch.cat(histories)[some]) @ items.T) if histories else 1.0)
        head.log_logit_scale.fill_(math.log(max(target, 1e-9) / max(spread, 1e-9)))
    logger.info(
        "Head calibrated for the %s task on %d states: norm of the mean %.3g, scale %.3g, logit scale %.3g",
        corpus.task,
        len(rows),
        float(mean.norm()),
        float(scale),
        float(head.logit_scale),
    )


def _spread(logits: torch.Tensor) -> float:
    return float(logits.std(dim=-1).mean())
