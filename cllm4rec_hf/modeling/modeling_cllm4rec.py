"""CLLM4Rec: user and item tokens inside a frozen pretrained language model (Zhu et al., WWW 2024)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .losses_cllm4rec import (
    chunked_over_items,
    multinomial_nll,
    mutual_regularization,
    sampled_nll,
    soft_capped,
    vocabulary_cross_entropy,
)
from .pretrained_cllm4rec import CLLM4RecPreTrainedModel
from .quantization_cllm4rec import is_packed

TASKS = ("collaborative", "content", "recommendation")


@dataclass
class CLLM4RecOutput(ModelOutput):
    """What a CLLM4Rec model returns; each loss is the mean over the batch's documents.

    Args:
        loss: scalar, the sum of the parts below.
        lm_loss: scalar, −Σ_k log p(main text token k) of a document (collaborative and content tasks).
        rec_loss: scalar, −Σ_{j in hold-out} log p_j of a document (recommendation task).
        mr_loss: scalar, λ_c/2 Σ ‖z^l − z^c‖² (+ λ_l/2 Σ ‖z^l‖²) over a document's distinct users and items.
        logits: content: [B, T, N]; collaborative: [B, T, J]; recommendation: [B, J]. None while a loss is asked for
            in training mode, where no step needs them.
        last_hidden_state: [B, T, d] hidden states of the backbone (of its decoder), `CLLM4RecModel` only.
    """

    loss: Tensor | None = None
    lm_loss: Tensor | None = None
    rec_loss: Tensor | None = None
    mr_loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None


class CLLM4RecModel(CLLM4RecPreTrainedModel):
    """Hidden states of prompts and documents with user and item tokens, without a task's head."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        task: str = "collaborative",
    ) -> CLLM4RecOutput:
        """Run the backbone.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, T] or None.
            decoder_input_ids: [B, M] int64 for encoder-decoder backbones; by default its start token alone.
            task: whose tables the ID tokens are read from: `collaborative`, `content` or `recommendation`.

        Returns:
            `last_hidden_state` [B, T, d] (or [B, M, d]).
        """
        if self.config.is_encoder_decoder and decoder_input_ids is None:
            decoder_input_ids = self.start_ids(len(input_ids))
        hidden = self.encode(input_ids, attention_mask, decoder_input_ids, _known(task))
        return CLLM4RecOutput(last_hidden_state=hidden)


class _CLLM4RecForTask(CLLM4RecPreTrainedModel):
    task: str

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        task: str | None = None,
        regularize: bool = True,
        sample: tuple[Tensor, Tensor] | None = None,
    ) -> CLLM4RecOutput:
        """Logits, and the loss of a batch of documents.

        Args:
            input_ids: [B, T] int64: prompt and main text without a gap; the prompt alone for encoder-decoder backbones
                and for the recommendation task.
            attention_mask: [B, T], 1 for tokens, 0 for padding; None for no padding.
            labels: int64, −100 where nothing is to be predicted. Language-model tasks: [B, T] token ids in place (the
                model shifts them), or [B, M] for encoder-decoder backbones. Recommendation: [B, M] token ids of the
                hold-out items.
            decoder_input_ids: [B, M] int64, encoder-decoder backbones without labels.
            task: another task than the class's own, for trainers that alternate tasks on one model.
            regularize: whether the loss includes mutual regularization.
            sample: item indices [S] int64 and log of their expected counts [S] float32, for item softmaxes that are
                estimated from a sample of the catalog instead of summed over it.

        Returns:
            `CLLM4RecOutput` with the parts of the loss named.

        Raises:
            ValueError: if an id or label is out of the task's range.
        """
        task = _known(task or self.task)
        if task == "recommendation":
            return self._recommend(input_ids, attention_mask, labels, regularize, sample)
        return self._language_model(task, input_ids, attention_mask, labels, decoder_input_ids, regularize, sample)

    def _language_model(
        self,
        task: str,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        decoder_input_ids: Tensor | None,
        regularize: bool,
        sample: tuple[Tensor, Tensor] | None,
    ) -> CLLM4RecOutput:
        if labels is not None:
            inside = labels[labels != -100]
            if task == "content":
                self._check_range(inside, self.first_user_id, "labels of a content document")
            else:
                self._check_range(inside, self.num_token_ids, "labels of an interaction document", self.first_item_id)
        if self.config.is_encoder_decoder and decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.shift_right(labels)
        hidden = self._states(input_ids, attention_mask, decoder_input_ids, task)
        history = None
        if task != "content":
            history = self._running_history(input_ids if decoder_input_ids is None else decoder_input_ids)
        logits = self._token_logits(task, hidden, history) if labels is None or not self.training else None
        if labels is None:
            return CLLM4RecOutput(logits=logits)
        rows, history_rows, target = self._predicting(hidden, history, labels)
        if task == "content":
            total = self._vocabulary_loss(rows, target)
        else:
            query = self.item_head.query(rows, history_rows, task)
            total = self._item_loss(query, (target - self.first_item_id).unsqueeze(1), sample)
        lm_loss = total / len(input_ids)
        mr_loss = None
        if regularize:
            ids = torch.cat([input_ids, labels], dim=1) if self.config.is_encoder_decoder else input_ids
            mr_loss = self._mutual_regularization(ids, task) / len(input_ids)
        loss = lm_loss if mr_loss is None else lm_loss + mr_loss
        return CLLM4RecOutput(loss=loss, lm_loss=lm_loss, mr_loss=mr_loss, logits=logits)

    def _states(
        self, input_ids: Tensor, attention_mask: Tensor | None, decoder_input_ids: Tensor | None, task: str
    ) -> Tensor:
        """Hidden states as `encode` returns them, or of no dimension where the task's head would not read them."""
        config = self.config
        if task == "content" or (config.lm_term and (config.lm_term_ranks or task != "recommendation")):
            return self.encode(input_ids, attention_mask, decoder_input_ids, task)
        for ids in (input_ids, decoder_input_ids):
            if ids is not None:
                self._check_range(ids, self.num_token_ids, "input_ids")
        ids = input_ids if decoder_input_ids is None else decoder_input_ids
        return self.collaborative_item_embeddings.weight.new_empty(*ids.shape, 0)

    def _predicting(
        self, hidden: Tensor, history: Tensor | None, labels: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Rows that predict a token of the main text: hidden states [R, d], histories [R, r], targets [R]."""
        if not self.config.is_encoder_decoder:
            labels, hidden = labels[:, 1:], hidden[:, :-1]
            history = None if history is None else history[:, :-1]
        predicted = labels != -100
        return hidden[predicted], None if history is None else history[predicted], labels[predicted]

    def _token_logits(self, task: str, hidden: Tensor, history: Tensor | None) -> Tensor:
        if task == "content":
            head, softcap = self._vocabulary_head()
            return soft_capped(head(hidden), softcap)
        query = self.item_head.query(hidden, history, task)
        return self.item_head.logits(query, self.collaborative_item_embeddings.weight)

    def _running_history(self, ids: Tensor) -> Tensor | None:
        # position t predicts the token after it, so the item at t already belongs to its history
        queries = self._item_queries(ids)
        return None if queries is None else self._shared_out(queries.cumsum(dim=1), self._is_item(ids).cumsum(dim=1))

    def _item_queries(self, ids: Tensor) -> Tensor | None:
        return self.item_head.item_queries(ids - self.first_item_id, self._is_item(ids))

    def _is_item(self, ids: Tensor) -> Tensor:
        return ids >= self.first_item_id

    def _shared_out(self, sums: Tensor, counts: Tensor) -> Tensor:
        """n^-ν Σ q_i from sums [..., r] and numbers of items [...]."""
        power = self.config.history_power
        return sums / counts.clamp(min=1).unsqueeze(-1).float() ** power if power else sums

    def _vocabulary_head(self) -> tuple[nn.Module, float | None]:
        softcap = getattr(self.config.text_config, "final_logit_softcapping", None)
        return self.backbone.get_output_embeddings(), softcap

    def _vocabulary_loss(self, rows: Tensor, target: Tensor) -> Tensor:
        head, softcap = self._vocabulary_head()
        if type(head) is nn.Linear and not is_packed(head.weight):
            return vocabulary_cross_entropy(rows, head.weight, target, head.bias, softcap)
        # an adapter or a quantized layer: its weight alone does not say what it computes
        return nn.functional.cross_entropy(soft_capped(head(rows), softcap).float(), target, reduction="sum")

    def _item_loss(self, query: Tensor, target: Tensor, sample: tuple[Tensor, Tensor] | None) -> Tensor:
        """Sum of −log p of each row's items [R, M] (−100 for none), exact or from a sample of the catalog."""
        table = self.collaborative_item_embeddings
        if sample is None:

            def exact(query: Tensor, target: Tensor) -> Tensor:
                return multinomial_nll(self.item_head.logits(query, table.weight), target)

            return chunked_over_items(exact, query, target, table.num_embeddings)
        items, log_expected = sample
        valid, own = target >= 0, target.clamp(min=0)
        positive = self.item_head.candidate_logits(query, table(own), own)
        sampled = self.item_head.candidate_logits(query, table(items), items)
        is_positive = (items[None, :, None] == target[:, None, :]).any(-1)
        return sampled_nll(positive, sampled, log_expected, is_positive, valid)

    def prompt_states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Hidden states that answer prompts: at the last token; of an encoder-decoder backbone's decoder.

        Args:
            input_ids: [B, T] int64 prompts of the configuration's `ranking_task`.
            attention_mask: [B, T] or None.

        Returns:
            [B, d] in the backbone's dtype.
        """
        if not self.config.is_encoder_decoder:
            return _at_end(self._states(input_ids, attention_mask, None, self.config.ranking_task), attention_mask)
        if self.config.ranking_task == "recommendation":
            return self._states(input_ids, attention_mask, self.start_ids(len(input_ids)), "recommendation")[:, 0]
        present = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        # an interaction document: its prompt is the encoder's, the items after it are the decoder's
        is_item = (input_ids >= self.first_item_id) & (present != 0)
        items, item_mask = _gathered(input_ids, is_item)
        prompt, prompt_mask = _gathered(input_ids, (present != 0) & ~is_item)
        decoder_input_ids = torch.cat([self.start_ids(len(items)), items], dim=1)
        hidden = self._states(prompt, prompt_mask, decoder_input_ids, "collaborative")
        return _at_end(hidden, torch.nn.functional.pad(item_mask, (1, 0), value=1))

    def item_contexts(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, task: str
    ) -> tuple[Tensor, Tensor | None]:
        """What the item head is given for a batch of interaction documents.

        Args:
            input_ids: [B, T] int64, as in `forward`.
            attention_mask: [B, T].
            labels: as in `forward`.
            task: `collaborative` or `recommendation`.

        Returns:
            Hidden states [R, d], one for each softmax over the items, and n^-ν Σ q_i [R, r] of their histories, None
            without a history term.
        """
        if task == "recommendation":
            return self.prompt_states(input_ids, attention_mask), self._whole_history(input_ids)
        decoder_input_ids = self.shift_right(labels) if self.config.is_encoder_decoder else None
        hidden = self._states(input_ids, attention_mask, decoder_input_ids, task)
        history = self._running_history(input_ids if decoder_input_ids is None else decoder_input_ids)
        return self._predicting(hidden, history, labels)[:2]

    def _whole_history(self, ids: Tensor) -> Tensor | None:
        queries = self._item_queries(ids)
        return None if queries is None else self._shared_out(queries.sum(dim=1), self._is_item(ids).sum(dim=1))

    def recommendation_queries(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The vectors that score the catalog, one forward pass of the prompts.

        Args:
            input_ids: [B, T] int64 prompts of the configuration's `ranking_task`: those of the recommendation task, or
                interaction documents, whose next item the collaborative language model predicts.
            attention_mask: [B, T] or None.

        Returns:
            [B, d] float32; item logits are their product with the collaborative item table, plus the head's bias.
        """
        states = self.prompt_states(input_ids, attention_mask)
        return self.item_head.query(states, self._whole_history(input_ids), self.config.ranking_task)

    def _recommend(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        regularize: bool,
        sample: tuple[Tensor, Tensor] | None,
    ) -> CLLM4RecOutput:
        if labels is not None:
            self._check_range(
                labels[labels != -100], self.num_token_ids, "labels (hold-out items)", self.first_item_id
            )
        query = self.recommendation_queries(input_ids, attention_mask)
        logits = None
        if labels is None or not self.training:
            logits = self.item_head.logits(query, self.collaborative_item_embeddings.weight)
        if labels is None:
            return CLLM4RecOutput(logits=logits)
        target = torch.where(labels == -100, labels, labels - self.first_item_id)
        rec_loss = self._item_loss(query, target, sample) / len(input_ids)
        mr_loss = None
        if regularize:
            ids = torch.cat([input_ids, labels], dim=1)
            mr_loss = self._mutual_regularization(ids, "recommendation") / len(input_ids)
        return CLLM4RecOutput(
            loss=rec_loss if mr_loss is None else rec_loss + mr_loss,
            rec_loss=rec_loss,
            mr_loss=mr_loss,
            logits=logits,
        )

    def _mutual_regularization(self, ids: Tensor, task: str) -> Tensor:
        users, items, content_users, content_items = self.tables()
        prior = self.config.lambda_l
        if task == "content":
            users, items, content_users, content_items = content_users, content_items, users, items
            prior = 0.0
        precision = self.config.lambda_c
        return mutual_regularization(
            ids, self.first_user_id, users, content_users, precision, prior
        ) + mutual_regularization(ids, self.first_item_id, items, content_items, precision, prior)


class CLLM4RecForCollaborative(_CLLM4RecForTask):
    """Collaborative LM: predicts the items of an interaction document over the J items (L-step)."""

    task = "collaborative"


class CLLM4RecForContent(_CLLM4RecForTask):
    """Content LM: predicts the words of a review, an item's or a user's text over the N words (C-step)."""

    task = "content"


class CLLM4RecForRecommendation(_CLLM4RecForTask):
    """RecLLM: one forward pass of a prompt gives one multinomial over the whole catalog."""

    task = "recommendation"


def _at_end(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The states [B, d] of each row's last token, padding on either side."""
    if mask is None:
        return hidden[:, -1]
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    end = (positions * (mask != 0)).argmax(dim=-1)
    return hidden[torch.arange(len(end), device=end.device), end]


def _gathered(ids: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Some tokens of each row in their order, padded on the right, and their mask, both [B, T] int64."""
    order = torch.argsort(~chosen, dim=1, stable=True)
    mask = chosen.gather(1, order).long()
    width = int(mask.sum(dim=1).max()) if len(mask) else 0
    return (ids.gather(1, order) * mask)[:, :width], mask[:, :width]


def _known(task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; expected one of {', '.join(TASKS)}")
    return task
