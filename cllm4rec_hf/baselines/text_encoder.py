"""Hidden states of texts under a pretrained language model that is read, not trained."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..modeling.backbone_cllm4rec import load_backbone, load_backbone_config
from ..tokenization.base_tokenizer_cllm4rec import load_base
from .neural import default_device
from .selection import is_main_process

_TEXTS_AT_ONCE = 256

# words that are read at once: longer texts are read window by window
WINDOW = 256
_LONGEST_TEXT, _SHORTEST_TEXT = 2048, 32
# words that are read in all, as far as the shortest text allows: a minute or two of SmolLM2-135M on two cores
_WORDS = 300_000


def affordable_length(num_texts: int) -> int:
    """Words of a text that are read where there are so many texts, from 2,048 for few to 32 for many."""
    return min(_LONGEST_TEXT, max(_SHORTEST_TEXT, _WORDS // max(1, num_texts)))


class TextEncoder:
    """A language model cut behind the deepest block that is read; encoder–decoder models are read at the encoder.

    Args:
        backbone: the model's name, see `modeling.backbone_cllm4rec.locate_backbone`.
        layers: numbers of blocks that words have passed through where they are read; 0 is the word embeddings.
        revision: revision of the model's Hub repository.
        dtype: the model's dtype.

    Raises:
        ValueError: if the model has fewer blocks.
    """

    def __init__(
        self, backbone: str, layers: list[int], revision: str | None = None, dtype: torch.dtype = torch.float32
    ):
        depth = load_backbone_config(backbone, revision).num_hidden_layers
        if max(layers) > depth:
            raise ValueError(f"The backbone {backbone!r} has {depth} layers; got layer {max(layers)}")
        self.layers = layers
        self.tokenizer, _ = load_base(backbone, {"revision": revision} if revision else {}, with_rows=False)
        # one block more than is read: the last one's output passes through a final norm, the others' does not
        loaded = load_backbone(backbone, revision, num_layers=min(max(layers) + 1, depth), dtype=dtype)
        model: Any = loaded.get_encoder() if loaded.config.is_encoder_decoder else loaded.base_model
        self.model = model.eval().to(default_device())

    @property
    def hidden_size(self) -> int:
        """Width d of the states."""
        return int(self.model.config.hidden_size)

    def fingerprint(self) -> str:
        """What tells the weights from others: a hash of each one's name, shape, sum and norm, to six digits."""
        parts = [str(self.model.dtype), *map(str, self.layers)]
        for name, weight in self.model.state_dict().items():
            # in double precision where there is one: not on every accelerator
            numbers = weight.detach().cpu().double()
            parts.append(f"{name} {tuple(weight.shape)} {numbers.sum().item():.5e} {numbers.norm().item():.5e}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    @property
    def window(self) -> int:
        """Words that are read at once."""
        return min(WINDOW, getattr(self.model.config, "max_position_embeddings", None) or WINDOW)

    def tokenize(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Token ids of each text, at most `max_length`; none for an empty text."""
        ids: list[list[int]] = []
        # a tokenizer holds all that it found in the texts of one call, cut or not
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            some = texts[first : first + _TEXTS_AT_ONCE]
            rows = self.tokenizer(some, truncation=True, max_length=max_length)["input_ids"]
            ids += [row if text else [] for text, row in zip(some, rows, strict=True)]
        return ids

    def read(
        self, ids: list[list[int]], batch_size: int = 16
    ) -> Iterator[tuple[list[int], Tensor, dict[int, Tensor]]]:
        """Read sequences, those of like length together.

        Args:
            ids: token ids of each sequence; empty ones are left out.
            batch_size: sequences at once.

        Yields:
            The numbers of B sequences, their mask [B, L] bool, and for each layer their states [B, L, d].
        """
        filled = sorted((number for number in range(len(ids)) if ids[number]), key=lambda number: len(ids[number]))
        starts = range(0, len(filled), batch_size)
        for start in tqdm(starts, desc="Reading texts", unit="batch", delay=2, disable=not is_main_process()):
            numbers = filled[start : start + batch_size]
            rows = [torch.tensor(ids[number]) for number in numbers]
            words = pad_sequence(rows, batch_first=True).to(self.model.device)
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(self.model.device)
            with torch.no_grad():
                states = self.model(input_ids=words, attention_mask=mask, output_hidden_states=True).hidden_states
            yield numbers, mask.bool(), {layer: states[layer] for layer in self.layers}


def windows_of(ids: list[list[int]], window: int) -> list[tuple[int, list[int]]]:
    """Pieces of at most `window` token ids, each with the number of its text, in order."""
    return [
        (text, row[first : first + window]) for text, row in enumerate(ids) for first in range(0, len(row), window)
    ]


def embed_texts(
    texts: list[str], backbone: str, layers: list[int], max_length: int = WINDOW, batch_size: int = 16
) -> dict[int, np.ndarray]:
    """Mean hidden states of texts under a pretrained language model, long texts read window by window.

    Args:
        texts: the texts; empty ones have no mean.
        backbone: the model's name.
        layers: numbers of blocks.
        max_length: words of a text that are read.
        batch_size: texts at once.

    Returns:
        For each layer [len(texts), d] float32; NaN for empty texts.

    Raises:
        ValueError: if the model has fewer blocks.
    """
    encoder = TextEncoder(backbone, layers)
    ids = encoder.tokenize(texts, max_length)
    windows = windows_of(ids, encoder.window)
    sums = {layer: np.zeros((len(texts), encoder.hidden_size)) for layer in layers}
    for numbers, mask, states in encoder.read([words for _, words in windows], batch_size):
        of_text = [windows[number][0] for number in numbers]
        for layer in layers:
            total = (states[layer].float() * mask[..., None]).sum(dim=1).cpu().numpy()
            np.add.at(sums[layer], of_text, total)
    # nothing was read of an empty text
    lengths = np.array([len(row) or np.nan for row in ids])[:, None]
    return {layer: (total / lengths).astype(np.float32) for layer, total in sums.items()}
