"""The command line: `cllm4rec prepare | train | evaluate | recommend | push`."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import CLLM4RecError

SOURCES = ("movielens-100k", "amazon-reviews", "yelp")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        0, 1 when training diverged, 2 for an error that the user can mend (each one line on stderr), 130 when
        interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    # train has the settings' own parser, which reads YAML files too
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    is_main_process = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if is_main_process else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "datasets", "accelerate", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return options.run(options)
    except (CLLM4RecError, ModuleNotFoundError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(prog="cllm4rec", description="Recommend with a language model (CLLM4Rec).")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_prepare, _add_train, _add_evaluate, _add_recommend, _add_push):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[[Any], int], text: str, **kwargs: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False, **kwargs)
    parser.set_defaults(run=run)
    return parser


def _hide_loading_bars() -> None:
    """Reading and writing tables takes less time than its bars take space; training keeps its own."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


# ---- prepare


def _add_prepare(commands: Any) -> None:
    text = "Filter, split and index raw interactions into a prepared directory."
    parser = _command(commands, "prepare", _prepare, text)
    origin = parser.add_argument_group("where from (one of the two)")
    origin.add_argument(
        "--interactions", metavar="FILE", help="CSV, TSV, JSON lines or Parquet, plain or .gz; or hub:ORG/NAME"
    )
    origin.add_argument(
        "--source", nargs="+", metavar=("NAME", "PATH"), help=f"a known layout: {', '.join(SOURCES)}, and its path"
    )
    origin.add_argument("--metadata", metavar="FILE", help="product metadata of amazon-reviews")
    columns = parser.add_argument_group("columns of --interactions")
    columns.add_argument("--user-column", default="user")
    columns.add_argument("--item-column", default="item")
    columns.add_argument("--rating-column", help="leave out for implicit feedback")
    columns.add_argument("--timestamp-column", help="orders a user's items; by default the order of the rows")
    columns.add_argument("--text-column", help="reviews")
    tables = parser.add_argument_group("tables about items and users")
    tables.add_argument("--items", metavar="FILE")
    tables.add_argument("--item-id-column", help="by default as --item-column")
    tables.add_argument("--item-title-column")
    tables.add_argument("--item-text-columns", type=_names, default=(), metavar="A,B")
    tables.add_argument("--users", metavar="FILE")
    tables.add_argument("--user-id-column", help="by default as --user-column")
    tables.add_argument("--user-text-columns", type=_names, default=(), metavar="A,B")
    rules = parser.add_argument_group("rules")
    rules.add_argument("--min-rating", type=float, help="keep ratings of at least this")
    rules.add_argument("--k-core", type=int, default=5, help="least interactions of a user and an item (default 5)")
    rules.add_argument("--validation-share", type=float, default=0.1)
    rules.add_argument("--test-share", type=float, default=0.1)
    rules.add_argument("--seed", type=int, default=98765)
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace prepared data that is there")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _prepare(options: argparse.Namespace) -> int:
    from .data.prepare import PrepareRules, prepare

    rules = PrepareRules(
        options.min_rating, options.k_core, options.validation_share, options.test_share, options.seed
    )
    if Path(options.output).exists() and not options.overwrite:
        raise CLLM4RecError(
            f"The output directory {options.output} exists; choose another --output, or --overwrite to replace it"
        )
    meta = prepare(_raw_data(options), rules, options.output, options.overwrite)
    for step in meta["steps"]:
        counts = " ".join(f"{step[name]:>11,} {name}" for name in ("users", "items", "interactions"))
        print(f"{step['step']:<26} {counts}")
    print(f"{'split':<26} " + ", ".join(f"{name} {count:,}" for name, count in meta["splits"].items()))
    print(f"Prepared data lies in {options.output}")
    return 0


def _raw_data(options: argparse.Namespace) -> Any:
    from .data.sources import TableMapping, from_tables

    if bool(options.interactions) == bool(options.source):
        raise CLLM4RecError("Name the data by exactly one of --interactions and --source")
    if options.metadata and (not options.source or options.source[0] != "amazon-reviews"):
        raise CLLM4RecError("--metadata belongs to --source amazon-reviews; name other tables of items by --items")
    if options.interactions:
        fields = TableMapping.__dataclass_fields__
        return from_tables(TableMapping(**{name: getattr(options, name) for name in fields}))
    name, *paths = options.source
    defaults = {"user_column": "user", "item_column": "item"}
    for field in TableMapping.__dataclass_fields__:
        if (getattr(options, field) or None) != defaults.get(field):
            raise CLLM4RecError(
                f"--{field.replace('_', '-')} belongs to --interactions; --source {name} brings its own columns"
            )
    if name not in SOURCES:
        raise CLLM4RecError(f"Unknown source {name!r}; expected one of {', '.join(SOURCES)}")
    if len(paths) > 1 or (not paths and name != "movielens-100k"):
        raise CLLM4RecError(f"--source {name} takes one path; got {len(paths)}")
    if name == "movielens-100k":
        from .data.movielens import movielens_100k

        return movielens_100k(*paths)
    if name == "amazon-reviews":
        from .data.amazon import amazon_reviews

        return amazon_reviews(paths[0], options.metadata)
    from .data.yelp import yelp

    return yelp(paths[0])


# ---- train


def _add_train(commands: Any) -> None:
    text = "Train on prepared data: content warm-up, mutually regularized pretraining, recommendation fine-tuning."
    _command(commands, "train", _train, f"{text} `cllm4rec train --help` lists the settings.", add_help=False)


def _train(options: argparse.Namespace) -> int:
    _hide_loading_bars()
    from .trainers.recipe import train
    from .trainers.settings import parse_settings

    train(parse_settings(options.rest))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()
    return 0


# ---- evaluate


def _add_evaluate(commands: Any) -> None:
    parser = _command(commands, "evaluate", _evaluate, "Full-ranking metrics of a model beside Popularity and EASE.")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="checkpoint")
    parser.add_argument("--data", required=True, metavar="DIR_OR_ID", help="prepared data")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--output", metavar="FILE", help="by default evaluation.json in a local checkpoint")
    parser.add_argument("--no-baselines", action="store_true", help="leave Popularity and EASE out")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")


def _evaluate(options: argparse.Namespace) -> int:
    _hide_loading_bars()
    from .data.prepared import PreparedData
    from .evaluation.evaluator import format_table
    from .evaluation.report import evaluate_checkpoint

    data = PreparedData.load(options.data)
    results = evaluate_checkpoint(options.model, data, options.split, not options.no_baselines, options.seed)
    print(format_table(list(results.items())))
    name, *others = results
    report = results[name].to_dict()
    report["baselines"] = {other: results[other].to_dict() for other in others}
    directory = Path(options.model)
    file_name = "evaluation.json" if options.split == "test" else f"evaluation-{options.split}.json"
    file = Path(options.output) if options.output else (directory if directory.is_dir() else Path()) / file_name
    beside = file.with_name(file.name + ".part")
    beside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    beside.replace(file)
    print(f"Written to {file}")
    if options.output is None and options.split == "test" and (directory / "training.yaml").is_file():
        from .card import write_card

        write_card(directory)
    return 0


# ---- recommend


def _add_recommend(commands: Any) -> None:
    parser = _command(commands, "recommend", _recommend, "Recommend items to users, with external ids and titles.")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="checkpoint")
    parser.add_argument("--data", metavar="DIR_OR_ID", help="prepared data, for the histories of --users")
    parser.add_argument(
        "--users", metavar="FILE|A,B", help="user ids, one a line in a file or separated by commas; all by default"
    )
    parser.add_argument(
        "--histories", metavar="FILE", help='JSON lines {"user": id, "history": [item ids, oldest first]}'
    )
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument(
        "--unknown", choices=("raise", "skip", "warn"), default="raise", help="what to do with unknown ids"
    )
    parser.add_argument("--output", metavar="FILE", help=".parquet or .csv; printed with titles by default")
    parser.add_argument(
        "--score-cells", type=int, metavar="N", help="users x items that are scored at once; bounds memory"
    )


def _recommend(options: argparse.Namespace) -> int:
    _hide_loading_bars()
    from .inference.batch import recommend_to_file, recommend_to_terminal, requests_from
    from .inference.recommender import Recommender
    from .inference.sharing import OtherProcessError, launched_processes

    if options.top_k < 1:
        raise CLLM4RecError(f"--top-k must be 1 or more, got {options.top_k}")
    if options.score_cells is not None and options.score_cells < 1:
        raise CLLM4RecError(f"--score-cells must be 1 or more, got {options.score_cells}")
    bound = {} if options.score_cells is None else {"score_cells": options.score_cells}
    processes = launched_processes()
    try:
        if not options.output and not processes.is_main_process:
            return 0
        recommender = Recommender.from_pretrained(options.model, **bound)
        if processes.device.type != "cpu":
            recommender.model.to(processes.device)
        catalog = recommender.catalog
        requests = requests_from(catalog, options.data, options.users, options.histories, options.unknown)
        if not options.output:
            recommend_to_terminal(recommender, requests, options.top_k, options.unknown)
            return 0
        count = recommend_to_file(recommender, requests, options.output, options.top_k, options.unknown)
        if processes.is_main_process:
            print(f"Recommendations for {count:,} users written to {options.output}")
        return 0
    except OtherProcessError:
        # the process that failed says why, and so does the main one
        if processes.is_main_process:
            raise
        return 2
    finally:
        if processes.num_processes > 1:
            processes.destroy_process_group()


# ---- push


def _add_push(commands: Any) -> None:
    text = "Publish a checkpoint with its tokenizer, catalog and model card, and its data, on the Hub."
    parser = _command(commands, "push", _push, text)
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint")
    parser.add_argument("--repo-id", required=True, metavar="ORG/NAME", help="model repository")
    parser.add_argument("--data", metavar="DIR", help="prepared data to publish, too")
    parser.add_argument("--data-repo-id", metavar="ORG/NAME", help="data set repository of that data")
    parser.add_argument("--private", action="store_true", default=None, help="make new repositories private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch of the model repository")


def _push(options: argparse.Namespace) -> int:
    _hide_loading_bars()
    if options.data and not options.data_repo_id:
        raise CLLM4RecError("--data needs --data-repo-id, the repository that the data goes to")
    from .data.prepared import PreparedData
    from .inference.recommender import Recommender

    recommender = Recommender.from_pretrained(options.model)
    data = PreparedData.load(options.data) if options.data else None
    if data is not None:
        data.push_to_hub(options.data_repo_id, private=options.private)
        print(f"Data set: {options.data_repo_id}")
    settings = {"private": options.private, "revision": options.revision}
    recommender.push_to_hub(options.repo_id, dataset=options.data_repo_id, **settings)
    print(f"Model: {options.repo_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
