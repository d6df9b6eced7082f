"""Finding and loading a backbone's own tokenizer."""

import importlib.util
import os
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, cached_file

_PACKAGE_SCHEME = "package://"
HUB_KEYWORDS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
_SETTINGS = (
    "chat_control_tokens",
    "chat_template",
    "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    "model_input_names",
    "model_max_length",
    "padding_side",
    "response_template",
    "truncation_side",
)


def load_base(name_or_path: str, hub: dict[str, Any], with_rows: bool = True) -> tuple[Any, int | None]:
    """Load a backbone's tokenizer.

    Args:
        name_or_path: directory, Hub id, GGUF file (a path, or `org/repo/file.gguf`), or `package://PACKAGE/FILE`.
        hub: where to find it, see `HUB_KEYWORDS`.
        with_rows: read the backbone's configuration too.

    Returns:
        The tokenizer, and the rows of the backbone's embedding; `None` if not asked for or not on record.

    Raises:
        FileNotFoundError: if a GGUF file or a package's file does not exist.
        ModuleNotFoundError: if the package is not installed.
    """
    path, gguf_file = _locate(name_or_path)
    if gguf_file is not None:
        hub = dict(hub, gguf_file=gguf_file)
    tokenizer = AutoTokenizer.from_pretrained(path, **hub)
    return tokenizer, _embedding_rows(path, hub) if with_rows else None


def settings_of(base: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Constructor arguments that make another tokenizer of the same backend behave like this one.

    A pad token is among them if there is a pad or an EOS token.

    Raises:
        ValueError: if the base has no Rust tokenizer.
    """
    backend = getattr(base, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(
            f"{type(base).__name__} has no Rust tokenizer underneath; convert it to a tokenizer.json first"
        )
    settings = {name: getattr(base, name) for name in _SETTINGS if getattr(base, name, None) is not None}
    special = dict(base.special_tokens_map)
    for name in PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES:
        if name in special:
            settings[name] = special.pop(name)
    if "eos_token" in settings:
        settings.setdefault("pad_token", settings["eos_token"])
    if special:
        settings["model_specific_special_tokens"] = special
    if base.extra_special_tokens:
        settings["extra_special_tokens"] = base.extra_special_tokens
    return dict(settings, tokenizer_object=backend)


def _locate(name_or_path: str) -> tuple[str, str | None]:
    """Directory or Hub id of a backbone, and the GGUF file in it or `None`; see `load_base`."""
    path = name_or_path
    if path.startswith(_PACKAGE_SCHEME):
        package, _, file = path.removeprefix(_PACKAGE_SCHEME).partition("/")
        # find_spec imports nothing as long as the name has no dot
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                f"The backbone {name_or_path!r} lies in the package {package!r}, which is not installed. "
                f"Install it: pip install {package.replace('_', '-')}"
            )
        path = os.path.join(next(iter(spec.submodule_search_locations)), file)
        if ".." in file.split("/") or not os.path.exists(path):
            raise FileNotFoundError(f"The package {package!r} is installed but holds no {file!r} ({name_or_path!r})")
    if not path.endswith(".gguf"):
        return path, None
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            f"Reading the GGUF file {name_or_path!r} needs the package gguf: pip install 'cllm4rec-hf[gguf]'"
        )
    directory, file = os.path.split(path)
    if not os.path.isfile(path) and (os.path.isabs(path) or directory.count("/") != 1):
        raise FileNotFoundError(
            f"No GGUF file at {name_or_path!r}; expected a path, or 'org/repo/file.gguf' on the Hub"
        )
    return directory or ".", file


def _embedding_rows(path: str, hub: dict[str, Any]) -> int | None:
    """The backbone's vocab_size; `None` if there is no configuration, an error if there is one out of reach."""
    if "gguf_file" not in hub:
        options = {name: value for name, value in hub.items() if name != "trust_remote_code"}
        if cached_file(path, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **options) is None:
            return None
    config = AutoConfig.from_pretrained(path, **hub)
    return getattr(config.get_text_config(), "vocab_size", None)
