"""What users of the Hub do, each function in a clean process: python -m tests.hub.clients FUNCTION ARGUMENT…"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from cllm4rec_hf import (
    Catalog,
    CLLM4RecForRecommendation,
    CLLM4RecTokenizer,
    Evaluator,
    InteractionCorpus,
    PreparedData,
    PromptBuilder,
    RecommendationArguments,
    RecommendationCollator,
    RecommendationTrainer,
    Recommender,
)
from cllm4rec_hf.cli import main
from cllm4rec_hf.inference.recommender import Request

BACKBONE, CHECKPOINT, DATA, TRAINED = "org/tiny-llama", "org/recommender", "org/data", "org/trained"
BY_PARTS, SECRET, LOCAL = "org/by-parts", "org/secret", "org/local-backbone"
BROKEN = ("org/error", "org/cut", "org/model-error")


def recommendations(recommender: Recommender, data: PreparedData) -> list[Any]:
    """Items and scores for three users of the data and one history."""
    histories, items = data.histories("train", "validation"), recommender.catalog.item_ids
    requests = [Request(data.users["user_id"][u], tuple(items[j] for j in histories[u])) for u in (0, 5, 11)]
    requests.append(Request(None, tuple(items[:3])))
    found = recommender.recommend(requests, top_k=5)
    return [[(entry["item"], entry["score"]) for entry in answer] for answer in found]


def failure(attempt: Any) -> list[str]:
    """Kinds and text of the error that a call raises; empty if it raises none."""
    try:
        attempt()
    except Exception as error:
        return [*(kind.__name__ for kind in type(error).__mro__), str(error)]
    return []


def fresh_recommender(backbone: str, data: PreparedData, seed: int = 0, **kwargs: Any) -> Recommender:
    sizes = {"num_users": data.num_users, "num_items": data.num_items}
    model: Any = CLLM4RecForRecommendation.from_backbone(backbone, **sizes, seed=seed, initializer_range=0.5, **kwargs)
    tokenizer = CLLM4RecTokenizer.from_backbone(backbone, **sizes)
    return Recommender(model, tokenizer, Catalog.from_prepared(data))


# ---- publishing


def publish(backbone: str, prepared: str, output: str) -> dict[str, Any]:
    """Push a backbone, a checkpoint on it, its parts one by one, and the data; then let the backbone move on."""
    language_model = AutoModelForCausalLM.from_pretrained(backbone)
    language_model.push_to_hub(BACKBONE)
    AutoTokenizer.from_pretrained(backbone).push_to_hub(BACKBONE)
    commit = HfApi().repo_info(BACKBONE).sha
    data = PreparedData.load(prepared)
    data.push_to_hub(DATA, private=True)
    recommender = fresh_recommender(BACKBONE, data, revision=commit)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        recommender.push_to_hub(CHECKPOINT)
    recommender.push_to_hub(SECRET, private=True)
    # as an earlier upload in several files would have left it
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="model.safetensors.index.json", repo_id=SECRET)
    recommender.push_to_hub(SECRET)
    recommender.model.push_to_hub(BY_PARTS)
    recommender.tokenizer.push_to_hub(BY_PARTS)
    recommender.catalog.push_to_hub(BY_PARTS)
    # another state of the same repository, on a branch
    other = fresh_recommender(BACKBONE, data, seed=1)
    other.push_to_hub(CHECKPOINT, revision="other")
    # and one whose backbone nobody else could load
    fresh_recommender(backbone, data).push_to_hub(LOCAL)
    with torch.no_grad():
        for parameter in language_model.parameters():
            parameter.add_(1.0)
    language_model.push_to_hub(BACKBONE)
    return {
        "commit": commit,
        "recorded": other.model.config.backbone_revision,
        "expected": recommendations(recommender, data),
        "other": recommendations(other, data),
        "trained": train(data, output),
        "orphan": publish_orphan(recommender),
        "refused": failure(
            lambda: RecommendationArguments(output_dir=output, push_to_hub=True, hub_strategy="checkpoint")
        ),
        "vain": push_in_vain(recommender, data),
    }


def train(data: PreparedData, output: str) -> list[Any]:
    """Fine-tune for three epochs with a push at each save, and push the end; what the result recommends."""
    recommender = fresh_recommender(BACKBONE, data, seed=2)
    prompts = PromptBuilder(recommender.tokenizer, False)
    args = RecommendationArguments(
        output_dir=output,
        num_train_epochs=3,
        report_to="none",
        push_to_hub=True,
        hub_strategy="every_save",
        hub_always_push=True,
        hub_model_id=TRAINED,
        learning_rate=1e-2,
    )
    trainer = RecommendationTrainer(
        recommender.model,
        args,
        InteractionCorpus(data.histories("train"), "recommendation", min_items=2),
        RecommendationCollator(prompts, 64, (0.2, 0.4), 0.2, seed=5),
        evaluator=Evaluator(data, split="validation"),
        catalog=recommender.catalog,
        processing_class=recommender.tokenizer,
    )
    trainer.train()
    trainer.push_to_hub()
    trained = Recommender(trainer.model.eval(), recommender.tokenizer, recommender.catalog)
    return recommendations(trained, data)


def publish_orphan(recommender: Recommender) -> str:
    """Push a checkpoint whose backbone the Hub does not have at the recorded commit."""
    config = recommender.model.config
    recorded, config.backbone_revision = config.backbone_revision, "0" * 40
    commit = recommender.push_to_hub("org/orphan")
    config.backbone_revision = recorded
    return commit.oid


def push_in_vain(recommender: Recommender, data: PreparedData) -> dict[str, Any]:
    """Pushes to repositories whose commits fail."""
    return {
        "error": failure(lambda: recommender.push_to_hub("org/error")),
        "cut": failure(lambda: recommender.push_to_hub("org/cut")),
        "data": failure(lambda: data.push_to_hub("org/data-error")),
        "model": failure(lambda: recommender.model.push_to_hub("org/model-error")),
        "update": failure(lambda: recommender.push_to_hub(BY_PARTS, commit_message="in vain")),
        "no tokenizer": failure(
            lambda: [part.push_to_hub("org/no-tokenizer") for part in (recommender.model, recommender.tokenizer)]
        ),
        "stranger": failure(lambda: recommender.push_to_hub("org/stranger", token=False)),
    }


# ---- reading


def read(*names: str) -> dict[str, Any]:
    """Load checkpoints and data by repository id and recommend; again with the Auto classes and the catalog."""
    data = PreparedData.load(DATA)
    found = {name: recommendations(Recommender.from_pretrained(name), data) for name in names}
    model, tokenizer = AutoModel.from_pretrained(names[0]), AutoTokenizer.from_pretrained(names[0])
    parts = Recommender(model, tokenizer, Catalog.from_pretrained(names[0]))
    return {
        "found": found,
        "parts": recommendations(parts, data),
        "classes": [type(model).__name__, type(tokenizer).__name__],
        "fingerprint": data.fingerprint,
        "sizes": [len(data.interactions), len(data.texts), data.num_users, data.num_items],
    }


def read_in_vain() -> dict[str, Any]:
    """What a reader finds where uploads failed."""
    return {
        "whole": [failure(lambda name=name: Recommender.from_pretrained(name)) for name in BROKEN],
        "model": [failure(lambda name=name: AutoModel.from_pretrained(name)) for name in BROKEN],
        "no tokenizer": failure(lambda: Recommender.from_pretrained("org/no-tokenizer")),
        "data": failure(lambda: PreparedData.load("org/data-error")),
        "orphan": failure(lambda: Recommender.from_pretrained("org/orphan")),
    }


def evaluate(folder: str) -> int:
    """The command line on names of the Hub alone."""
    arguments = ["--model", CHECKPOINT, "--data", DATA]
    status = main(["evaluate", *arguments, "--no-baselines", "--output", f"{folder}/evaluation.json"])
    return status or main(["recommend", *arguments, "--top-k", "2", "--output", f"{folder}/recs.csv"])


def read_with_options(folder: str) -> dict[str, Any]:
    """Revision, subfolder, cache_dir, token and local_files_only of everything that loads."""
    home, data = Path(folder) / "cache", PreparedData.load(DATA)
    loaders = {
        "model": CLLM4RecForRecommendation.from_pretrained,
        "tokenizer": CLLM4RecTokenizer.from_pretrained,
        "catalog": Catalog.from_pretrained,
        "recommender": Recommender.from_pretrained,
        "data": PreparedData.load,
    }
    names = {kind: DATA if kind == "data" else SECRET for kind in loaders}
    local = {
        kind: failure(lambda k=kind: loaders[k](names[k], cache_dir=home, local_files_only=True)) for kind in loaders
    }
    stranger = {kind: failure(lambda k=kind: loaders[k](names[k], cache_dir=home, token=False)) for kind in loaders}
    wrong = {kind: failure(lambda k=kind: loaders[k](names[k], cache_dir=home, token="hf_wrong")) for kind in loaders}
    gone = {kind: failure(lambda k=kind: loaders[k](names[k], revision="gone")) for kind in loaders}
    missing = {kind: failure(lambda k=kind: loaders[k]("org/nowhere")) for kind in loaders}
    for kind, load in loaders.items():
        load(names[kind], cache_dir=home)
    cached = {
        kind: failure(lambda k=kind: loaders[k](names[k], cache_dir=home, local_files_only=True)) for kind in loaders
    }
    whole = Recommender.from_pretrained(CHECKPOINT, revision="other", token=False)
    parts = Recommender(
        CLLM4RecForRecommendation.from_pretrained(CHECKPOINT, revision="other"),
        CLLM4RecTokenizer.from_pretrained(CHECKPOINT, revision="other"),
        Catalog.from_pretrained(CHECKPOINT, revision="other"),
    )
    below = Path(folder) / "below"
    whole.save_pretrained(below)
    HfApi().create_repo("org/deep")
    HfApi().upload_folder(repo_id="org/deep", folder_path=below, path_in_repo="a/b")
    deep = Recommender.from_pretrained("org/deep", subfolder="a/b")
    deep_parts = Recommender(
        CLLM4RecForRecommendation.from_pretrained("org/deep", subfolder="a/b"),
        CLLM4RecTokenizer.from_pretrained("org/deep", subfolder="a/b"),
        Catalog.from_pretrained("org/deep", subfolder="a/b"),
    )
    local_deep = Recommender.from_pretrained(below.parent, subfolder="below")
    return {
        "caches": sorted(path.name for path in home.iterdir() if path.name.startswith(("models", "datasets"))),
        "local": local, "stranger": stranger, "wrong": wrong, "gone": gone, "missing": missing, "cached": cached,
        "other": [recommendations(one, data) for one in (whole, parts, deep, deep_parts, local_deep)],
        "not_below": failure(lambda: Recommender.from_pretrained("org/deep")),
        "vain": read_in_vain(),
        "evaluate": evaluate(folder),
    }  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(globals()[sys.argv[1]](*sys.argv[2:])) + "\n")
