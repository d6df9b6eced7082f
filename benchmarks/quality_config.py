"""What a table of benchmarks/quality.py is made of: a YAML file, read into data, seeds, methods and a sweep.

title: heading of the table
data:                                # one of the two
  prepare: "--source amazon-reviews {raw}/reviews_Beauty_5.json.gz --min-rating 4"
  prepared: runs/beauty/prepared-{seed}
seeds: [0, {prepare: 98765, train: 1}]    # a number is the seed of both
split: test
output: runs/quality/beauty
methods:
  - include: competitors.yaml        # a list like this one
  - baseline: ease                   # a name of the registry
    settings: {ridge: 300}           # fixed
  - baseline: mult-vae
    choose: true                     # by its own grid, on validation
  - baseline: cllm4rec-emb
    checkpoint_of: Ours              # what is made of the checkpoint of that row, seed by seed
  - name: Ours                       # settings of the recipe, of a training configuration or given here
    config: ../paper/beauty-gpt2.yaml
    cllm4rec: {ablation: llm-cf}
reference: {baseline: ease}          # a method whose level stands beside a sweep
sweep:
  setting: lambda_c
  values: [0, 0.01, 0.1, 1, 10, 100]
  cllm4rec: {backbone: gpt2}
"""

import difflib
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cllm4rec_hf.errors import CLLM4RecError

KEYS = ("title", "data", "seeds", "split", "metrics", "methods", "sweep", "reference", "output")
BASELINE_KEYS = ("name", "baseline", "choose", "settings", "checkpoint_of")
METHOD_KEYS = (*BASELINE_KEYS, "cllm4rec", "config")
SWEEP_KEYS = ("setting", "label", "values", "cllm4rec", "config")


@dataclass(frozen=True)
class Seed:
    """One repetition: the seed of the split and the seed of training."""

    prepare: int
    train: int


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        label: its name there.
        baseline: its name in the registry of competitors; None for a run of CLLM4Rec.
        settings: hyper-parameters of the competitor, or settings of the recipe.
        choose: whether the competitor's further hyper-parameters are chosen on validation.
        group: `baseline`, `cllm4rec` (what is made of its checkpoint, too), `sweep` or `reference`.
        value: the swept value, a number; a pair of numbers stands where its mean is.
        checkpoint_of: label of the run of CLLM4Rec whose checkpoint of the same seed the competitor is given.
    """

    label: str
    baseline: str | None
    settings: dict[str, Any]
    choose: bool = False
    group: str = "cllm4rec"
    value: float | None = None
    checkpoint_of: str | None = None


@dataclass(frozen=True)
class Table:
    """A YAML file's contents.

    Args:
        title: heading.
        output: directory of everything that is written.
        prepare: arguments of `cllm4rec prepare` but --seed and --output; `{raw}` is the directory of raw files.
        prepared: prepared directory, instead; `{seed}` stands for the seed of the split.
        seeds: the repetitions.
        methods: rows, those of the sweep included.
        split: `test` or `validation`.
        metrics: names of the form `recall@20`.
        sweep: name of the swept setting on the axis, or None.
    """

    title: str
    output: Path
    prepare: tuple[str, ...] | None
    prepared: str | None
    seeds: tuple[Seed, ...]
    methods: tuple[Method, ...]
    split: str = "test"
    metrics: tuple[str, ...] = field(default=("recall@20", "recall@40", "ndcg@100"))
    sweep: str | None = None


def read_table(path: Path) -> Table:
    """The table that a YAML file describes.

    Raises:
        CLLM4RecError: if the file cannot be read, or has unknown or missing keys.
    """
    return table_of(_read_yaml(path), path)


def table_of(values: Mapping[str, Any], path: Path) -> Table:
    """The table that the contents of a YAML file describe.

    Args:
        values: the contents.
        path: the file, for messages; `config:` entries are relative to it.

    Raises:
        CLLM4RecError: if there are unknown or missing keys.
    """
    _check(values, KEYS, path, needed=("data", "seeds", "output"))
    data = values["data"]
    _check(data, ("prepare", "prepared"), f"data of {path}")
    if len(data) != 1:
        raise CLLM4RecError(f"{path}: data needs exactly one of prepare and prepared; got {', '.join(data) or 'none'}")
    methods = [_method(entry, file) for entry, file in _included(values.get("methods") or [], path)]
    if "reference" in values:
        methods.append(_method(values["reference"], path, "reference"))
    if "sweep" in values:
        methods += _sweep(values["sweep"], path)
    if not methods:
        raise CLLM4RecError(f"{path} names no methods; expected `methods:`, `sweep:` or both")
    labels = [method.label for method in methods]
    double = next((label for label in labels if labels.count(label) > 1), None)
    if double is not None:
        raise CLLM4RecError(f"{path} has two methods named {double!r}; tell them apart by `name:`")
    trained = [method.label for method in methods if method.baseline is None]
    for method in methods:
        if method.checkpoint_of not in (None, *trained):
            raise CLLM4RecError(
                f"{path}: checkpoint_of of {method.label!r} must be the name of a run of CLLM4Rec in this table "
                f"({', '.join(trained) or 'there is none'}), got {method.checkpoint_of!r}"
            )
    seeds = tuple(_seed(value, path) for value in values["seeds"])
    if not seeds or len(set(seeds)) < len(seeds):
        raise CLLM4RecError(f"{path}: seeds must be one or more distinct ones, got {values['seeds']}")
    optional: dict[str, Any] = {name: values[name] for name in ("split",) if name in values}
    if "metrics" in values:
        optional["metrics"] = tuple(values["metrics"])
    return Table(
        title=values.get("title", path.stem),
        output=Path(values["output"]),
        prepare=_arguments(data["prepare"], path) if "prepare" in data else None,
        prepared=data.get("prepared"),
        seeds=seeds,
        methods=tuple(methods),
        sweep=values["sweep"].get("label", values["sweep"]["setting"]) if "sweep" in values else None,
        **optional,
    )


def _read_yaml(path: Path, kind: type = dict) -> Any:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CLLM4RecError(f"Cannot read {path}: {error}") from error
    if not isinstance(values, kind):
        raise CLLM4RecError(f"{path} must hold {'a list' if kind is list else '`name: value` lines'}")
    return values


def _check(values: Any, known: Iterable[str], where: Any, needed: Iterable[str] = ()) -> None:
    if not isinstance(values, Mapping):
        raise CLLM4RecError(f"{where} must hold `name: value` lines, got {values!r}")
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise CLLM4RecError(f"{where} has the unknown key {name!r}{hint} Known keys: {', '.join(known)}")
    missing = [name for name in needed if name not in values]
    if missing:
        raise CLLM4RecError(f"{where} lacks {', '.join(missing)}")


def _arguments(value: Any, path: Path) -> tuple[str, ...]:
    arguments = tuple(shlex.split(value) if isinstance(value, str) else map(str, value))
    for name in ("--seed", "--output", "--overwrite"):
        if any(argument.partition("=")[0] == name for argument in arguments):
            raise CLLM4RecError(f"{path}: {name} of prepare is set for each seed by itself; leave it out")
    return arguments


def _seed(value: Any, path: Path) -> Seed:
    if isinstance(value, int):
        return Seed(value, value)
    _check(value, ("prepare", "train"), f"seeds of {path}", needed=("prepare", "train"))
    return Seed(int(value["prepare"]), int(value["train"]))


def _included(entries: Any, path: Path) -> Iterator[tuple[Any, Path]]:
    """Entries, and in place of `include: FILE` those of that list, each with the file that it stands in."""
    if not isinstance(entries, list):
        raise CLLM4RecError(f"{path} must hold a list of methods, got {entries!r}")
    for entry in entries:
        if isinstance(entry, Mapping) and entry.keys() == {"include"}:
            file = path.parent / entry["include"]
            yield from _included(_read_yaml(file, list), file)
        else:
            yield entry, path


def _method(entry: Any, path: Path, group: str | None = None) -> Method:
    _check(entry, METHOD_KEYS, f"a method of {path}")
    if "baseline" in entry:
        from cllm4rec_hf.baselines.registry import REGISTRY

        name = entry["baseline"]
        _check(entry, BASELINE_KEYS, f"{name} of {path}")
        if name not in REGISTRY:
            raise CLLM4RecError(f"{path}: unknown baseline {name!r}; expected one of {', '.join(REGISTRY)}")
        settings, choose = dict(entry.get("settings") or {}), bool(entry.get("choose", False))
        checkpoint_of, takes_one = entry.get("checkpoint_of"), REGISTRY[name].needs_checkpoint
        if takes_one != (checkpoint_of is not None):
            wanted = "needs `checkpoint_of: NAME`, a run of CLLM4Rec" if takes_one else "takes no `checkpoint_of:`"
            raise CLLM4RecError(f"{path}: {name} {wanted}")
        # no competitor: it is as good as the checkpoint
        group = group or ("cllm4rec" if takes_one else "baseline")
        label = entry.get("name", REGISTRY[name].label)
        return Method(label, name, settings, choose, group, checkpoint_of=checkpoint_of)
    _check(entry, ("name", "cllm4rec", "config"), f"a method of {path}")
    if "cllm4rec" not in entry and "config" not in entry:
        raise CLLM4RecError(f"A method of {path} is neither `baseline: NAME` nor `cllm4rec: {{settings}}`: {entry}")
    return Method(entry.get("name", "CLLM4Rec"), None, _recipe(entry, path), group=group or "cllm4rec")


def _recipe(entry: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Settings of a training configuration, if one is named, and those that override them."""
    settings: dict[str, Any] = {}
    if "config" in entry:
        settings = _read_yaml(path.parent / entry["config"])
    settings.update(entry.get("cllm4rec") or {})
    for name in ("data", "output", "seed", "overwrite"):
        settings.pop(name, None)
    return settings


def _sweep(entry: Any, path: Path) -> list[Method]:
    _check(entry, SWEEP_KEYS, f"sweep of {path}", needed=("setting", "values"))
    setting, label, recipe = entry["setting"], entry.get("label", entry["setting"]), _recipe(entry, path)
    methods = []
    for value in entry["values"]:
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(isinstance(number, int | float) for number in numbers):
            raise CLLM4RecError(f"{path}: the values of a sweep must be numbers or pairs of numbers, got {value!r}")
        place = sum(numbers) / len(numbers)
        methods.append(
            Method(f"{label} = {place:g}", None, {**recipe, setting: value}, group="sweep", value=float(place))
        )
    return methods
