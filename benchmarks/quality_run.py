"""One method on one split, in a process of its own: fit or train, evaluate, and write what was measured.

Started by quality.py with a file that says what to do. Writes NAME.parquet with every user's metrics, then NAME.json;
each is complete before it takes its name, and the second says that the run is finished.
"""

import hashlib
import json
import logging
import sys
import time
from datetime import UTC
from pathlib import Path
from typing import Any

# what a run of CLLM4Rec leaves in its directory: the checkpoint, and once it is whole, what its training took
CHECKPOINT, RECORD = "checkpoint", "trained.json"


def peak_memory() -> dict[str, int]:
    """Peak resident memory of this process and, where there is one, of its accelerator, in bytes."""
    import torch

    from cllm4rec_hf.trainers.progress import peak_memory as megabytes

    found = {"peak_memory": round(megabytes(torch.device("cpu")) * 2**20)}
    if torch.cuda.is_available():
        found["peak_accelerator_memory"] = torch.cuda.max_memory_allocated()
    return found


def write_json(file: Path, values: Any) -> None:
    """Write beside, then rename."""
    beside = file.with_name(f"{file.name}.part")
    beside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    beside.replace(file)


def code_fingerprint(package: Path) -> str:
    """Hash of a package's Python files: results of one version may still come from different code."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def run(request: dict[str, Any]) -> None:
    """Do what a request says.

    Args:
        request: data (prepared directory), split, metrics, seed, baseline (name or None), choose, settings,
            checkpoint (directory of the one that a competitor is given, or None), work (directory of a CLLM4Rec run),
            result (file without suffix), identity (what the result is kept under).
    """
    from cllm4rec_hf.data.prepared import PreparedData
    from cllm4rec_hf.evaluation.evaluator import Evaluator

    data = PreparedData.load(request["data"])
    evaluator = Evaluator(data, request["split"], request["metrics"])
    ranker, told = (_baseline if request["baseline"] else _cllm4rec)(request, data)
    clock = time.perf_counter()
    result = evaluator.evaluate(ranker, bootstrap=False, progress=True)
    told["evaluation_seconds"] = time.perf_counter() - clock
    _write(Path(request["result"]), request, result, told)


def _baseline(request: dict[str, Any], data: Any) -> tuple[Any, dict[str, Any]]:
    from cllm4rec_hf.baselines.registry import baseline_class

    model_class = baseline_class(request["baseline"])
    given = {} if request["checkpoint"] is None else {"checkpoint": request["checkpoint"]}
    settings = {**request["settings"], **given}
    clock = time.perf_counter()
    if request["choose"]:
        selection = model_class.choose(data, request["seed"], **settings)
        model, chosen, fits = selection.model, selection.settings, selection.fits
    else:
        model, chosen, fits = model_class.fit_to(data, request["seed"], **settings), settings, 1
    # where the checkpoint lies concerns nobody else
    chosen = {name: value for name, value in chosen.items() if name not in given}
    return model, {"seconds": time.perf_counter() - clock, "settings": chosen, "fits": fits, "interrupted": False}


def _cllm4rec(request: dict[str, Any], data: Any) -> tuple[Any, dict[str, Any]]:
    from cllm4rec_hf.inference.recommender import Recommender
    from cllm4rec_hf.trainers.recipe import train
    from cllm4rec_hf.trainers.settings import RecipeSettings

    work = Path(request["work"])
    checkpoint, record = work / CHECKPOINT, work / RECORD
    settings = RecipeSettings(
        **request["settings"], data=request["data"], output=str(checkpoint), seed=request["seed"]
    )
    if not record.is_file():
        # what a run that goes on has taken before is not known
        interrupted = checkpoint.exists()
        clock = time.perf_counter()
        train(settings)
        told = {"seconds": time.perf_counter() - clock, "interrupted": interrupted, **peak_memory()}
        write_json(record, told)
    told = json.loads(record.read_text())
    recommender = Recommender.from_pretrained(str(checkpoint))
    return recommender.ranker, {**told, "settings": settings.what_made_it(), "fits": 1}


def _write(name: Path, request: dict[str, Any], result: Any, told: dict[str, Any]) -> None:
    import platform
    from datetime import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    import transformers

    import cllm4rec_hf

    beside = name.with_name(f"{name.name}.parquet.part")
    pq.write_table(pa.table({"user": result.users, **result.per_user}), beside)
    beside.replace(name.with_name(f"{name.name}.parquet"))
    peaks = {key: max(value, told.get(key, 0)) for key, value in peak_memory().items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    report = {
        "metrics": result.metrics,
        "num_users": result.num_users,
        **told,
        **peaks,
        "seed": request["seed"],
        "identity": request["identity"],
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "environment": {
            "cllm4rec_hf": cllm4rec_hf.__version__,
            "code": code_fingerprint(Path(cllm4rec_hf.__file__).parent),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "device": device,
        },
    }
    write_json(name.with_name(f"{name.name}.json"), report)


if __name__ == "__main__":
    # what was chosen, and why, belongs to the run's log.txt
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("cllm4rec_hf").setLevel(logging.INFO)
    run(json.loads(Path(sys.argv[1]).read_text()))
