"""What all CLLM4Rec models share: the frozen backbone, the tables, loading and saving, tokens to hidden states."""

import inspect
import logging
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from .attention_cllm4rec import attends_by_document, choose_attention, encode_documents
from .backbone_cllm4rec import load_backbone, pin_revision
from .configuration_cllm4rec import CLLM4RecConfig, without_quantization
from .head_cllm4rec import ItemHead
from .persistence_cllm4rec import BackboneElsewhere
from .quantization_cllm4rec import CANNOT_BE_SAVED, is_quantized, keep_gradient

logger = logging.getLogger(__name__)


class CLLM4RecPreTrainedModel(BackboneElsewhere):
    """The frozen backbone, the four tables and the item head; all classes share them, so one checkpoint serves all.

    Args:
        config: the model's configuration.
        attach_backbone: False builds the tables and the head alone, to be completed by `attach_backbone`.
    """

    base_model_prefix = "cllm4rec"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # every saved checkpoint carries the code of its class, so that it loads by trust_remote_code without the package
    _auto_class = "AutoModel"
    # losses are means over documents, never over tokens: Trainer must not divide them by a token count
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules: set[str] = set()
    _keep_in_fp32_modules_strict = [
        "collaborative_user_embeddings",
        "collaborative_item_embeddings",
        "content_user_embeddings",
        "content_item_embeddings",
        "item_head",
    ]

    def __init__(self, config: CLLM4RecConfig, attach_backbone: bool = True):
        super().__init__(config)
        size = config.hidden_size

        def table(rows: int) -> nn.Embedding:
            return nn.Embedding(rows, size, dtype=torch.float32)

        self.collaborative_user_embeddings = table(config.num_users)
        self.collaborative_item_embeddings = table(config.num_items)
        self.content_user_embeddings = table(config.num_users)
        self.content_item_embeddings = table(config.num_items)
        self.item_head = ItemHead(config)
        # name and Hub arguments of the checkpoint, for what lies beside the weights (the catalog)
        self.hub_source: dict[str, Any] = {}
        self.backbone: Any = None
        if attach_backbone:
            auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            self.backbone = auto_class.from_config(config.text_config)
            self.backbone.requires_grad_(False)
        self.post_init()

    # ---- construction

    def attach_backbone(self, backbone: PreTrainedModel) -> None:
        """Put a loaded language model in as the frozen backbone.

        Args:
            backbone: causal or sequence-to-sequence language model with N vocabulary rows and hidden size d.

        Raises:
            ValueError: if its family, vocabulary or hidden size is not what the configuration says.
        """
        expected, found = self.config.text_config, backbone.config
        for field in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
            if getattr(expected, field) != getattr(found, field):
                raise ValueError(
                    f"The backbone {self.config.backbone_name_or_path or type(backbone).__name__!r} has {field} "
                    f"{getattr(found, field)!r}, but this model was made for {field} {getattr(expected, field)!r}. "
                    "Load it with the backbone it was trained with."
                )
        if backbone.get_output_embeddings() is None:
            raise ValueError(
                f"{type(backbone).__name__} has no language-model head; pass a model loaded by AutoModelForCausalLM "
                "or AutoModelForSeq2SeqLM"
            )
        backbone.requires_grad_(False)
        keep_gradient(backbone)
        self.backbone = backbone
        # which modules a device map or a sharding may not cut
        self._no_split_modules = set(backbone._no_split_modules or ())
        self.config.text_config = without_quantization(backbone.config)
        self.config._attn_implementation = backbone.config._attn_implementation
        if self.config.backbone_name_or_path is not None:
            # transformers' Trainer reads this too, and does not miss these keys when it resumes
            self._keys_to_ignore_on_save = {f"backbone.{key}" for key in backbone.state_dict()}

    def unfreeze_backbone(self) -> None:
        """Let the backbone learn beside the tables, in float32: small steps would vanish in the rounding of less.

        It no longer counts as the one that was loaded: `save_pretrained` saves it with the tables.

        Raises:
            ValueError: if it is quantized.
        """
        if is_quantized(self.backbone):
            raise ValueError("A quantized backbone cannot be trained; load it without quantization")
        self.backbone.float().requires_grad_(True)
        self.config.text_config.dtype = torch.float32
        self.config.backbone_name_or_path = self.config.backbone_revision = None
        self._keys_to_ignore_on_save = None

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike | PreTrainedModel,
        num_users: int,
        num_items: int,
        *,
        num_layers: int | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        seed: int = 0,
        backbone_kwargs: dict[str, Any] | None = None,
        **config_kwargs: Any,
    ) -> "CLLM4RecPreTrainedModel":
        """Start from a pretrained language model with fresh user and item tokens.

        Args:
            backbone: Hub id, directory, GGUF file, `package://PACKAGE/FILE`, or a live language model with its head
                (which then belongs to the new model and is saved with it, and keeps its attention implementation
                unless that is transformers' default).
            num_users: number of user tokens I.
            num_items: number of item tokens J.
            num_layers: keep only the backbone's first so many layers.
            revision: revision of the Hub repository; by default the present commit of its main branch, which is what
                the configuration records.
            dtype: dtype of the backbone; the tables are float32 always.
            seed: seed of the fresh embeddings.
            backbone_kwargs: further arguments of the backbone's `from_pretrained`, e.g. `attn_implementation` or
                `quantization_config` (of the backbone alone; it is not recorded).
            config_kwargs: fields of `CLLM4RecConfig`.

        Returns:
            A model in evaluation mode; everything but the backbone is trainable.

        Raises:
            ValueError: if a live backbone is to be cut or is quantized.
        """
        if isinstance(backbone, PreTrainedModel):
            if num_layers is not None:
                raise ValueError(
                    "num_layers applies to a backbone that is loaded by name; cut the live model yourself"
                )
            if is_quantized(backbone):
                raise ValueError(CANNOT_BE_SAVED)
            name, loaded = None, backbone
            choose_attention(loaded)
        else:
            name = os.fspath(backbone)
            revision = pin_revision(name, revision, backbone_kwargs or {})
            loaded = load_backbone(name, revision, num_layers, dtype=dtype, **(backbone_kwargs or {}))
        config = CLLM4RecConfig(
            text_config=loaded.config,
            num_users=num_users,
            num_items=num_items,
            backbone_name_or_path=name,
            backbone_revision=revision,
            **config_kwargs,
        )
        model = cls(config, attach_backbone=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for table in model.tables():
                table.weight.normal_(0.0, config.initializer_range, generator=generator)
        model.attach_backbone(loaded)
        return model.eval()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers calls this for what a checkpoint lacks; the backbone's modules have their own
        if isinstance(module, ItemHead):
            module.reset()
        elif isinstance(module, nn.Embedding) and any(module is table for table in self.tables()):
            module.weight.normal_(0.0, self.config.initializer_range)

    # ---- parts

    def tables(self) -> tuple[nn.Embedding, nn.Embedding, nn.Embedding, nn.Embedding]:
        """Collaborative users, collaborative items, content users, content items."""
        return (
            self.collaborative_user_embeddings,
            self.collaborative_item_embeddings,
            self.content_user_embeddings,
            self.content_item_embeddings,
        )

    def collaborative_parameters(self) -> list[Tensor]:
        """What an L-step or a recommendation step may move: the collaborative tables and the item head."""
        tables = [self.collaborative_user_embeddings.weight, self.collaborative_item_embeddings.weight]
        return tables + list(self.item_head.parameters())

    def content_parameters(self) -> list[Tensor]:
        """What a C-step may move: the content tables."""
        return [self.content_user_embeddings.weight, self.content_item_embeddings.weight]

    @property
    def dtype(self) -> torch.dtype:
        """The backbone's dtype; the tables are float32 beside any."""
        return super().dtype if self.backbone is None else self.backbone.dtype

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's vocabulary embedding."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's vocabulary embedding."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The backbone's language-model head; peft and quantizers leave it alone."""
        return None if self.backbone is None else self.backbone.get_output_embeddings()

    @property
    def first_user_id(self) -> int:
        """Token id of `<user_0>`, N."""
        return self.config.base_vocab_size

    @property
    def first_item_id(self) -> int:
        """Token id of `<item_0>`, N + I."""
        return self.config.base_vocab_size + self.config.num_users

    @property
    def num_token_ids(self) -> int:
        """N + I + J, one more than the largest token id."""
        return self.first_item_id + self.config.num_items

    # ---- from tokens to hidden states

    def embed(self, input_ids: Tensor, task: str) -> Tensor:
        """Embeddings of words and ID tokens.

        Args:
            input_ids: [B, T] int64 in [0, N + I + J).
            task: `content` reads the content tables, the other tasks the collaborative ones.

        Returns:
            [B, T, d] in the backbone's dtype.

        Raises:
            ValueError: if an id is out of range.
        """
        self._check_range(input_ids, self.num_token_ids, "input_ids")
        if task == "content":
            users, items = self.content_user_embeddings, self.content_item_embeddings
        else:
            users, items = self.collaborative_user_embeddings, self.collaborative_item_embeddings
        words = self.backbone.get_input_embeddings()
        is_item = input_ids >= self.first_item_id
        is_user = (input_ids >= self.first_user_id) & ~is_item
        embedded = words(input_ids.masked_fill(is_user | is_item, 0))
        # some families scale word embeddings on their way in; ID tokens live in the same units
        scale = getattr(words, "embed_scale", 1.0)
        embedded = embedded.index_put(
            (is_user,), (users(input_ids[is_user] - self.first_user_id) * scale).to(embedded.dtype)
        )
        return embedded.index_put(
            (is_item,), (items(input_ids[is_item] - self.first_item_id) * scale).to(embedded.dtype)
        )

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        task: str = "collaborative",
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the backbone's last layer.

        Args:
            input_ids: [B, T] int64; for encoder-decoder backbones the prompt.
            attention_mask: [B, T], 1 for tokens and 0 for padding, on either side; None for no padding.
            decoder_input_ids: [B, M] int64, encoder-decoder backbones only.
            task: which tables the ID tokens are read from, see `embed`.
            position_ids: [B, T] int64, decoder-only backbones; by default counted from the attention mask.

        Returns:
            [B, T, d], or [B, M, d] of the decoder, in the backbone's dtype; not defined where there is padding.

        Raises:
            ValueError: if a row is longer than the backbone's context, or an id is out of range.
        """
        context = getattr(self.config.text_config, "max_position_embeddings", None)
        if context is not None and input_ids.shape[1] > context:
            raise ValueError(
                f"A prompt of {input_ids.shape[1]} tokens exceeds the backbone's context of {context}; leave out the "
                "oldest items of the history, or the end of the text"
            )
        embedded = self.embed(input_ids, task)
        if self.config.is_encoder_decoder:
            if decoder_input_ids is None:
                raise ValueError("An encoder-decoder backbone needs decoder_input_ids or labels beside the prompt")
            memory = self.backbone.get_encoder()(inputs_embeds=embedded, attention_mask=attention_mask)
            hidden = self.backbone.get_decoder()(
                inputs_embeds=self.embed(decoder_input_ids, task),
                encoder_hidden_states=memory.last_hidden_state,
                encoder_attention_mask=attention_mask,
                use_cache=False,
            ).last_hidden_state
            if getattr(self.config.text_config, "scale_decoder_outputs", False):
                hidden = hidden * self.config.hidden_size**-0.5
            return hidden
        decoder = self.backbone.get_decoder()
        if position_ids is None and attends_by_document(self.backbone) and not torch.compiler.is_compiling():
            return encode_documents(decoder, embedded, attention_mask)
        positions = {}
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        if position_ids is not None and "position_ids" in inspect.signature(decoder.forward).parameters:
            positions["position_ids"] = position_ids
        return decoder(
            inputs_embeds=embedded, attention_mask=attention_mask, use_cache=False, **positions
        ).last_hidden_state

    def _check_range(self, ids: Tensor, bound: int, name: str, at_least: int = 0) -> None:
        if torch.compiler.is_compiling() or ids.numel() == 0 or ids.device.type == "meta":
            return
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < at_least or high >= bound:
            wrong = high if high >= bound else low
            raise ValueError(
                f"{name} holds the id {wrong}; expected ids from {at_least} to {bound - 1} "
                f"({self.config.base_vocab_size} words, {self.config.num_users} users, {self.config.num_items} items)"
                ". Use the tokenizer that was saved with this model."
            )

    def start_ids(self, documents: int) -> Tensor:
        """The decoder's start token for so many documents, [B, 1] int64 (encoder-decoder backbones)."""
        config = self.config.text_config
        start = getattr(config, "decoder_start_token_id", None)
        if start is None:
            start = getattr(config, "pad_token_id", None) or 0
        return torch.full((documents, 1), start, dtype=torch.int64, device=self.device)

    def shift_right(self, labels: Tensor) -> Tensor:
        """Decoder input that predicts labels [B, M] in place: the start token, then all labels but the last."""
        shifted = labels[:, :-1].masked_fill(labels[:, :-1] == -100, 0)
        return torch.cat([self.start_ids(len(labels)), shifted], dim=1)
