"""Reproduce a table of recommendation quality: every method on every seed, each in a process of its own.

    python benchmarks/quality.py --config examples/configs/quality/movielens-100k.yaml
    python benchmarks/quality.py --config examples/configs/quality/musical-instruments-4-core.yaml --raw DIR
    python benchmarks/quality.py --quick --output DIR        # generated data, a tiny language model

Writes quality.json, quality.md and quality.png into the output directory. What is finished is not run again, and an
interrupted training goes on: results are kept under a hash of the method's settings, the seed and the data.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from quality_config import Method, Seed, Table, read_table
from quality_plots import draw
from quality_report import format_summary, load_result, markdown, summarise
from quality_run import CHECKPOINT, RECORD, write_json

from cllm4rec_hf import __version__
from cllm4rec_hf.cli import main as cllm4rec
from cllm4rec_hf.errors import CLLM4RecError

RUN = Path(__file__).with_name("quality_run.py")
# what makes a competitor; the evaluator and the tables of the data are the same for all
_COMPETITORS = ("cllm4rec_hf.baselines.", "cllm4rec_hf.data.item_texts")


def prepare(table: Table, seed: Seed, raw: str | None) -> Path:
    """The prepared directory of a seed; prepared now if it is not there.

    Args:
        table: the table.
        seed: its seed of the split counts.
        raw: what `{raw}` stands for.

    Raises:
        CLLM4RecError: if raw files are needed and not named, or cannot be prepared.
    """
    if table.prepare is None:
        return Path(str(table.prepared).replace("{seed}", str(seed.prepare)))
    # by the command, not by where the raw files lie: once prepared, they need not be there
    name = hashlib.sha256(json.dumps(table.prepare).encode()).hexdigest()[:8]
    directory = table.output / "prepared" / f"{name}-seed-{seed.prepare}"
    if directory.is_dir():
        return directory
    if raw is None and any("{raw}" in argument for argument in table.prepare):
        raise CLLM4RecError(
            f"Name the directory of the raw files by --raw; they are read as {' '.join(table.prepare)}"
        )
    arguments = [argument.replace("{raw}", str(raw)) for argument in table.prepare]
    command = ["prepare", *arguments, "--seed", str(seed.prepare), "--output", str(directory)]
    directory.parent.mkdir(parents=True, exist_ok=True)
    print(f"Preparing the data with seed {seed.prepare}", flush=True)
    if cllm4rec(command):
        raise CLLM4RecError(f"`cllm4rec {shlex.join(command)}` failed")
    return directory


def request_of(table: Table, method: Method, seed: Seed, data: Path, fingerprint: str) -> dict[str, Any]:
    """What a run is to do, and the name its result is kept under.

    Args:
        table: the table.
        method: its row.
        seed: its column.
        data: the prepared directory.
        fingerprint: that data's.

    Raises:
        CLLM4RecError: if the recipe knows no such setting.
    """
    identity = {
        "baseline": method.baseline, "choose": method.choose, "settings": method.settings, "seed": seed.train,
        "split": table.split, "metrics": list(table.metrics), "data_fingerprint": fingerprint, "version": __version__,
    }  # fmt: skip
    if method.baseline is None:
        # with what the preset fills in, so that a preset that has changed is run anew
        identity["settings"] = _resolved(method, seed)
    else:
        # their defaults and grids stand in the code
        identity["code"] = _code_of(method.baseline)
    checkpoint = None
    if method.checkpoint_of is not None:
        run = next(other for other in table.methods if other.label == method.checkpoint_of)
        trained = request_of(table, run, seed, data, fingerprint)
        identity["checkpoint"], checkpoint = trained["identity"], str(Path(trained["work"]) / CHECKPOINT)
    key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return {
        "data": str(data),
        "split": table.split,
        "metrics": list(table.metrics),
        "seed": seed.train,
        "baseline": method.baseline,
        "choose": method.choose,
        "settings": method.settings,
        "checkpoint": checkpoint,
        "work": str(table.output / "runs" / key),
        "result": str(table.output / "results" / key),
        "identity": identity,
    }


def _code_of(baseline: str) -> str:
    """Hash of the modules that make a competitor and what it is made of, helpers that they import included."""
    from cllm4rec_hf.baselines.registry import REGISTRY, baseline_class

    names, classes = [baseline], []
    for name in names:
        model = baseline_class(name)
        classes += model.__mro__
        names += [part for part in model.PARTS if part not in names]
    modules = [cls.__module__ for cls in classes if cls.__module__.startswith(_COMPETITORS)]
    for module in modules:
        imported = (getattr(value, "__module__", None) for value in vars(sys.modules[module]).values())
        modules += {str(name) for name in imported if str(name).startswith(_COMPETITORS)} - set(modules)
    sources = [Path(str(sys.modules[module].__file__)).read_bytes() for module in sorted(set(modules))]
    sources.append(repr([REGISTRY[name] for name in names]).encode())
    return hashlib.sha256(b"\0".join(sources)).hexdigest()[:16]


def _resolved(method: Method, seed: Seed) -> dict[str, Any]:
    from cllm4rec_hf.trainers.settings import RecipeSettings

    known = [field.name for field in dataclasses.fields(RecipeSettings)]
    unknown = [name for name in method.settings if name not in known]
    if unknown:
        raise CLLM4RecError(f"{method.label}: unknown setting {unknown[0]!r}; known settings: {', '.join(known)}")
    return RecipeSettings(**method.settings, seed=seed.train).what_made_it()


def lacking(method: Method) -> str | None:
    """Why a method cannot be run here: a library that it wraps is not installed."""
    if method.baseline is None:
        return None
    from cllm4rec_hf.baselines.registry import REGISTRY

    package = REGISTRY[method.baseline].package
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed (pip install 'cllm4rec-hf[baselines]')"


def finished(request: dict[str, Any]) -> bool:
    """Whether what a request asks for has been run."""
    name = Path(request["result"])
    return name.with_name(f"{name.name}.json").is_file()


def execute(request: dict[str, Any], label: str) -> str | None:
    """Run in a process of its own, unless it has been.

    Args:
        request: see `request_of`.
        label: for the lines about it.

    Returns:
        None, or why it failed.
    """
    if finished(request):
        print(f"{label}: finished before", flush=True)
        return None
    if request["checkpoint"] and not Path(request["checkpoint"]).with_name(RECORD).is_file():
        result = Path(request["result"]).with_name(f"{Path(request['checkpoint']).parent.name}.json")
        reason = "the run whose checkpoint it needs has not finished"
        if result.is_file():
            reason = f"the checkpoint it needs is gone; delete {result} to train it again"
        print(f"{label}: {reason}", flush=True)
        return reason
    work = Path(request["work"])
    work.mkdir(parents=True, exist_ok=True)
    Path(request["result"]).parent.mkdir(parents=True, exist_ok=True)
    write_json(work / "request.json", request)
    print(f"{label} ...", flush=True)
    clock = time.perf_counter()
    log = work / "log.txt"
    # what an interrupted run has told is not told again
    with log.open("a", encoding="utf-8") as file:
        command = [sys.executable, str(RUN), str(work / "request.json")]
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    if status:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        reason = lines[-1] if status == 1 and lines else f"status {status}"
        print(f"{label}: failed, see {log}: {reason}", flush=True)
        return reason
    print(f"{label}: {time.perf_counter() - clock:.0f} s", flush=True)
    return None


def run_table(
    table: Table, raw: str | None = None, command: str = "", rows: tuple[Method, ...] | None = None
) -> dict[str, Any]:
    """Run what is not finished, then write the table of all that is.

    Args:
        table: the table.
        raw: directory of raw files, for `data: prepare:`.
        command: what made the table, for the record.
        rows: methods of the table to run now; all by default.

    Returns:
        The contents of quality.json.

    Raises:
        CLLM4RecError: if the data or a setting is wrong, or no method finished.
    """
    from cllm4rec_hf.data.prepared import PreparedData

    if importlib.util.find_spec("matplotlib") is None:
        # not to be found out after hours
        raise CLLM4RecError("The picture of the table needs matplotlib: pip install 'cllm4rec-hf[card]'")
    datasets, plan = [], []
    rows = table.methods if rows is None else rows
    skipped = {method.label: reason for method in rows if (reason := lacking(method))}
    for seed in table.seeds:
        directory = prepare(table, seed, raw)
        data = PreparedData.load(directory)
        interactions = len(data.interactions)
        size = {"num_users": data.num_users, "num_items": data.num_items, "interactions": interactions}
        datasets.append({"seed": seed.prepare, "fingerprint": data.fingerprint, **size})
        if {**datasets[0], **size} != datasets[0]:
            raise CLLM4RecError(f"The seeds' data differ in more than the split: {datasets[0]} and {datasets[-1]}")
        # what reads a checkpoint comes after what writes it
        for method in sorted(table.methods, key=lambda method: method.checkpoint_of is not None):
            if method.label not in skipped:
                plan.append((method, seed, request_of(table, method, seed, directory, data.fingerprint)))
    failed = {}
    now = [entry for entry in plan if entry[0] in rows]
    for number, (method, seed, request) in enumerate(now, start=1):
        reason = execute(request, f"[{number}/{len(now)}] {method.label}, seed {seed.train}")
        if reason is not None:
            failed[f"{method.label}, seed {seed.train}"] = reason
    results: dict[str, dict[int, Any]] = {}
    for method, seed, request in plan:
        if finished(request):
            results.setdefault(method.label, {})[table.seeds.index(seed)] = load_result(Path(request["result"]), table)
    if not results:
        raise CLLM4RecError(f"No method finished: {failed}")
    summary = {"command": command, **summarise(table, results, datasets), "skipped": skipped, "failed": failed}
    write_json(table.output / "quality.json", summary)
    beside = table.output / "quality.md.part"
    beside.write_text(markdown(summary), encoding="utf-8")
    beside.replace(table.output / "quality.md")
    draw(summary, table.output / "quality.png")
    return summary


def only(table: Table, names: str) -> tuple[Method, ...]:
    """Some rows of a table.

    Args:
        table: the table.
        names: comma-separated labels.

    Raises:
        CLLM4RecError: if it has no such row, or one is made of another's checkpoint that is not named.
    """
    chosen = [name.strip() for name in names.split(",")]
    labels = [method.label for method in table.methods]
    unknown = [name for name in chosen if name not in labels]
    if unknown:
        raise CLLM4RecError(f"The table has no row {unknown[0]!r}; its rows are {', '.join(labels)}")
    methods = tuple(method for method in table.methods if method.label in chosen)
    for method in methods:
        if method.checkpoint_of not in (None, *chosen):
            raise CLLM4RecError(f"{method.label} is made of {method.checkpoint_of}'s checkpoint; name that row, too")
    return methods


def with_seeds(table: Table, numbers: list[int]) -> Table:
    """A table over some of its seeds.

    Args:
        table: the table.
        numbers: seeds of training.

    Raises:
        CLLM4RecError: if it has no such seed.
    """
    known = [seed.train for seed in table.seeds]
    unknown = [number for number in numbers if number not in known]
    if unknown:
        raise CLLM4RecError(f"The table has no seed {unknown[0]}; its seeds are {', '.join(map(str, known))}")
    return dataclasses.replace(table, seeds=tuple(seed for seed in table.seeds if seed.train in numbers))


def main(arguments: list[str] | None = None) -> int:
    """Run a table; 0, 1 if a method failed, 2 for an error that the user can mend, 130 when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file of the table")
    parser.add_argument(
        "--raw", metavar="DIR", help="directory of the raw files, where the data is yet to be prepared"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="instead of the file's own")
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help="comma-separated rows of the table to run now, beside those that have finished",
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="some of the table's seeds, instead of all")
    parser.add_argument(
        "--quick", action="store_true", help="generated data and a tiny language model in place of the real ones"
    )
    options = parser.parse_args(arguments)
    if options.config is None and not options.quick:
        parser.error("name a table by --config, or try --quick")
    try:
        table = read_table(options.config) if options.config else None
        if options.quick:
            from quality_quick import quick_table

            if options.output is None:
                parser.error("--quick needs --output, not to mix with real results")
            table = quick_table(table, options.output)
        elif options.output:
            table = dataclasses.replace(table, output=options.output)
        table = with_seeds(table, options.seeds) if options.seeds else table
        rows = only(table, options.only) if options.only else None
        # where files lie on this machine concerns nobody else
        config = options.config.name if options.config and options.config.is_absolute() else options.config
        named = [f"--config {config}"] if config else []
        named += ["--raw DIR"] if options.raw else []
        named += [f'--only "{options.only}"'] if options.only else []
        named += [f"--seeds {' '.join(map(str, options.seeds))}"] if options.seeds else []
        named += ["--quick"] if options.quick else []
        summary = run_table(table, options.raw, " ".join(["python benchmarks/quality.py", *named]), rows)
    except CLLM4RecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print()
    print(format_summary(summary))
    print(f"Written to {table.output}")
    return 1 if summary["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
