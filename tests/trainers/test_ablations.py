"""The ablations: each trains, is evaluated and recommends from the command line, and does what its name says."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cllm4rec_hf import (
    CLLM4RecError,
    CLLM4RecForRecommendation,
    CollaborativeCollator,
    PreparedData,
    RecommendationCollator,
    Recommender,
)
from cllm4rec_hf.cli import main
from cllm4rec_hf.data.corpora import DocumentKey
from cllm4rec_hf.evaluation.report import evaluate_checkpoint
from cllm4rec_hf.trainers.ablations import ABLATIONS
from cllm4rec_hf.trainers.recipe import Recipe
from cllm4rec_hf.trainers.settings import PRETRAINED_BACKBONE_RATE, RecipeSettings
from tests.conftest import prepare_interactions, save_backbone, write_interactions
from tests.test_cli import flags
from tests.trainers.parts import make_parts

QUICK = {
    "max_length": 64, "max_text_length": 40, "content_epochs": 1, "pretraining_epochs": 1, "recommendation_epochs": 1,
    "batch_size": 24, "gradient_accumulation_steps": 1, "backbone_learning_rate": 1e-3, "warm_start_steps": 20,
}  # fmt: skip
BACKBONE_TRAINS = ("llm-scratch", "llm-ftall")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The data of all runs."""
    directory = tmp_path_factory.mktemp("data")
    write_interactions(directory / "interactions.csv")
    return prepare_interactions(directory / "interactions.csv", directory / "prepared")


@pytest.fixture(scope="module")
def saved_backbone(tmp_path_factory, base_tokenizer):
    """The backbone of all runs."""
    return save_backbone(tmp_path_factory.mktemp("models") / "backbone", base_tokenizer)


@pytest.fixture(scope="module")
def run(prepared, saved_backbone, tmp_path_factory):
    """A function that trains an ablation by the command line, once; the directory and the model at its start."""
    directory, done = tmp_path_factory.mktemp("runs"), {}
    original = Recipe._stages

    def train(ablation, preset="default"):
        if (ablation, preset) in done:
            return done[ablation, preset]
        starts = []

        def note(self):
            for collator in (self.collaborative_collator, self.recommendation_collator):
                assert collator.reorder == (ablation != "llm-fixord")
            starts.append({name: value.detach().clone() for name, value in self.model.state_dict().items()})
            return original(self)

        output = directory / f"{ablation}-{preset}"
        quick = {k: v for k, v in QUICK.items() if k != "backbone_learning_rate" or ablation in BACKBONE_TRAINS}
        paths = {"data": prepared, "backbone": saved_backbone, "output": output}
        chosen = {"preset": preset, "ablation": ablation, "lambda_c": 5.0, **quick}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Recipe, "_stages", note)
            assert main(["train", *flags({**paths, **chosen})]) == 0
        done[ablation, preset] = output, starts[0]
        return done[ablation, preset]

    return train


QUICKLY = [("default", name) for name in ABLATIONS if name != "no-content-lm"] + [("paper", "llm-prerec")]
# without a history term there is no "no-lm"
OTHERS = [("paper", name) for name in ABLATIONS if name not in ("llm-prerec", "no-lm")] + [
    ("default", "no-content-lm")
]


@pytest.mark.parametrize(
    ("preset", "ablation"), [*QUICKLY, *(pytest.param(*both, marks=pytest.mark.slow) for both in OTHERS)]
)
def test_each_trains_is_evaluated_and_recommends(preset, ablation, run, prepared, tmp_path, capsys):
    output, start = run(ablation, preset)
    capsys.readouterr()
    assert main(["evaluate", "--model", str(output), "--data", str(prepared), "--no-baselines"]) == 0
    assert 0 <= json.loads((output / "evaluation.json").read_text())["recall@20"] <= 1
    recommend = ["recommend", "--model", str(output), "--data", str(prepared), "--users", "u01", "--top-k", "3"]
    assert main(recommend) == 0
    assert "User u01 has interacted with" in capsys.readouterr().out
    made = yaml.safe_load((output / "training.yaml").read_text())
    assert made["ablation"] == ablation and ABLATIONS[ablation].items() <= made.items()
    assert f"| `ablation` | {ablation} |" in (output / "README.md").read_text()
    model = CLLM4RecForRecommendation.from_pretrained(output)
    trains = ablation in BACKBONE_TRAINS
    assert model.config.includes_backbone == trains
    stored = load_file(output / "model.safetensors")
    # exactly what was trained comes back
    end = model.state_dict()
    assert all(torch.equal(stored[name], end[name]) for name in stored)
    moved = {name for name in start if not torch.equal(start[name].float(), end[name].float())}
    assert any(name.startswith("backbone.") for name in moved) == trains
    if trains:
        assert any(name.startswith("backbone.") for name in stored)
        assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    without_content = not made["use_content"]
    assert any(name.startswith("content_") for name in moved) != without_content
    assert list(json.loads((output / "training_log.json").read_text())) == [
        *([] if without_content else ["content"]), "pretraining", *([] if ablation == "llm-prerec" else ["recommendation"])
    ]  # fmt: skip
    # whoever loads it and saves it again does not lose the backbone
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == stored.keys()


def test_scratch_starts_from_other_weights_than_the_pretrained_and_ftall_from_these(run, saved_backbone):
    pretrained = load_file(saved_backbone / "model.safetensors")
    for ablation in BACKBONE_TRAINS:
        _, start = run(ablation)
        same = [name for name, tensor in pretrained.items() if torch.equal(start[f"backbone.{name}"], tensor)]
        matrices = [name for name, tensor in pretrained.items() if tensor.dim() == 2]
        assert (set(matrices) <= set(same)) == (ablation == "llm-ftall")
        assert ablation == "llm-ftall" or not set(matrices) & set(same)


def test_an_interrupted_run_with_a_backbone_that_trains_ends_the_same(run, prepared, saved_backbone, tmp_path):
    output, _ = run("llm-ftall")
    expected = load_file(output / "model.safetensors")
    # the last stage alone is repeated, from the tables and the backbone of the one before it
    settings = RecipeSettings(
        data=str(prepared),
        backbone=str(saved_backbone),
        output=str(tmp_path / "more"),
        ablation="llm-ftall",
        lambda_c=5.0,
        **QUICK,
    )

    class Interrupted(Exception):
        pass

    recipe = Recipe(settings)

    def interrupt(directory):
        raise Interrupted

    recipe._recommendation_stage = interrupt
    with pytest.raises(Interrupted):
        recipe.run()
    Recipe(settings).run()
    again = load_file(tmp_path / "more" / "model.safetensors")
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_cf_pulls_nothing_and_reads_no_text(run):
    # whatever λ_c is asked for
    output, _ = run("llm-cf")
    config = CLLM4RecForRecommendation.from_pretrained(output).config
    assert config.lambda_c == 0 and config.warm_start == "ease" and config.warm_start_text_weight == 0
    log = json.loads((output / "training_log.json").read_text())
    entries = [entry for stage in log.values() for entry in stage]
    assert {entry[name] for entry in entries for name in entry if name.endswith("_mr_loss")} == {0.0}
    assert not [name for entry in entries for name in entry if name.startswith("content_")]


@pytest.mark.parametrize("task", ["collaborative", "recommendation"])
def test_the_fixed_order_is_the_stored_one_at_every_reading(task, base_tokenizer):
    parts = make_parts(base_tokenizer)
    items = np.array([7, 2, 9, 0, 4, 8])

    def orders(reorder):
        if task == "collaborative":
            collator = CollaborativeCollator(parts.prompts, 64, 0, reorder)
        else:
            collator = RecommendationCollator(parts.prompts, 64, (0.2, 0.4), 0.0, 0, reorder)
        features = [{"user": 1, "items": items, "key": DocumentKey(0, 1, reading)} for reading in range(8)]
        for row in collator(features)["input_ids"].numpy() - parts.prompts.first_item_id:
            yield row[row >= 0].tolist()

    in_order = [order == [item for item in items if item in order] for order in orders(True)]
    assert not all(in_order)
    fixed = list(orders(False))
    assert all(order == [item for item in items if item in order] for order in fixed)
    assert all(len(order) == len(items) for order in fixed) == (task == "collaborative")


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_prerec_scores_are_the_collaborative_models_next_item_log_probabilities(family, base_tokenizer):
    parts = make_parts(base_tokenizer, family, ranking_task="collaborative")
    model = parts.model
    with torch.no_grad():
        model.item_head.collaborative_mean.normal_()
        model.item_head.recommendation_mean.normal_()
    from cllm4rec_hf.inference.ranker import ModelRanker

    users = [0, 3, None, 7, 5]
    histories = [np.array(h) for h in ([3, 1], [9, 0, 4, 2, 7], [5], [], [8, 6, 1])]
    scores = torch.from_numpy(ModelRanker(model, parts.prompts, 64).score(users, histories))
    for user, history, row in zip(users, histories, scores, strict=True):
        # an item more, whose own likelihood given the rest is the score
        for item in (0, 6):
            prompt, main = parts.prompts.interaction(user), parts.prompts.item_ids([*history, item])
            batch = parts.collaborative_collator.join([prompt], [main], "collaborative")
            labels = batch["labels"].clone()
            # the likelihood of the last item alone
            labels[:, :-1] = -100
            if family == "t5":
                decoder = torch.cat([model.start_ids(1), torch.from_numpy(main[None, :-1])], dim=1)
                batch["decoder_input_ids"] = decoder
            loss = model(**{**batch, "labels": labels}, regularize=False).lm_loss
            assert float(row.log_softmax(-1)[item]) == pytest.approx(-float(loss), abs=1e-4)


def test_prerec_answers_the_same_way_everywhere(run, prepared):
    from transformers import pipeline

    output, _ = run("llm-prerec")
    recommender = Recommender.from_pretrained(output)
    assert recommender.model.config.ranking_task == "collaborative"
    requests = [{"user": "u01", "history": ["i10", "i12"]}, {"user": "u02", "history": ["i00", "i03", "i05"]}]
    from cllm4rec_hf import Request

    by_class = list(recommender.recommend([Request.of(request) for request in requests], top_k=4))
    by_pipeline = pipeline("recommendation", model=str(output))(requests, top_k=4, batch_size=2)
    for one, other in zip(by_class, by_pipeline, strict=True):
        assert [entry["item"] for entry in one] == [entry["item"] for entry in other]
        assert [e["score"] for e in one] == pytest.approx([e["score"] for e in other], abs=1e-2)
    # other prompts than the recommendation task's
    other = Recommender.from_pretrained(output, ranking_task="recommendation")
    known = [np.array([1, 2])]
    assert not np.allclose(other.ranker.score([0], known), recommender.ranker.score([0], known))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_without_the_lm_the_history_term_alone_scores_and_the_backbone_is_not_run(family, base_tokenizer):
    parts = make_parts(base_tokenizer, family, lm_term=False, item_bias=False)
    model, head = parts.model, parts.model.item_head
    # nothing of it may be run
    model.backbone.get_decoder().forward = None
    from cllm4rec_hf.inference.ranker import ModelRanker

    histories = [np.array([3, 1]), np.array([9, 0, 4])]
    scores = ModelRanker(model, parts.prompts).score([0, None], histories)
    for history, row in zip(histories, scores, strict=True):
        summed = head.history_queries.weight[history].sum(0)
        expected = head.history_scale * (summed @ head.history_basis) @ model.collaborative_item_embeddings.weight.T
        np.testing.assert_allclose(row, expected.detach().numpy(), atol=1e-5)
    for task, collator in (("collaborative", parts.collaborative_collator), ("recommendation", None)):
        collator = collator or parts.recommendation_collator
        corpus = parts.collaborative if task == "collaborative" else parts.recommendation
        features = [{"key": DocumentKey(0, k, 0), **corpus[k]} for k in range(4)]
        out = model.train()(**collator(features))
        out.loss.backward()
    assert head.history_queries.weight.grad.to_dense().abs().sum() > 0
    assert model.collaborative_item_embeddings.weight.grad.to_dense().abs().sum() > 0


def test_a_whole_checkpoints_own_history_term_is_evaluated_without_its_lm(run, prepared):
    output, _ = run("llm-cf")
    data = PreparedData.load(str(prepared))
    whole, own = (
        Recommender.from_pretrained(output, **fields).ranker.score([0], [np.array([1, 2, 3])])
        for fields in ({"lm_term_ranks": True}, {"lm_term": False})
    )
    assert not np.allclose(whole, own)
    results = evaluate_checkpoint(str(output), data, baselines=False, lm_term=False)
    assert 0 <= results["CLLM4Rec"].metrics["recall@20"] <= 1


def test_an_ablation_wins_over_what_else_is_given_and_is_told_apart():
    plain = RecipeSettings(backbone="b")
    ablated = RecipeSettings(backbone="b", ablation="llm-prerec", recommendation_epochs=7)
    assert ablated.recommendation_epochs == 0 and plain.recommendation_epochs > 0
    assert plain.what_made_it() != ablated.what_made_it()
    assert plain.backbone_learning_rate is None
    assert RecipeSettings(backbone="b", ablation="llm-ftall").backbone_learning_rate == PRETRAINED_BACKBONE_RATE
    assert RecipeSettings(backbone="b", ablation="llm-scratch").backbone_learning_rate is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ablation": "llm-all"}, "Unknown ablation 'llm-all'; expected one of llm-scratch, llm-cf"),
        ({"ablation": "no-lm", "preset": "paper"}, "Without the LM's term the history term has to rank"),
        ({"ranking_task": "content"}, "ranking_task must be recommendation or collaborative, got 'content'"),
        ({"ranking_task": "collaborative"}, "set recommendation_epochs to 0 and pretraining_epochs to 1 or more"),
        ({"ablation": "llm-prerec", "pretraining_epochs": 0}, "got 0 and 0"),
        ({"ablation": "llm-ftall", "quantization": "int8"}, "leave quantization int8 out"),
        ({"backbone_learning_rate": 1e-3}, "backbone_learning_rate 0.001 needs train_backbone"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(CLLM4RecError) as error:
        RecipeSettings(backbone="b", **settings)
    assert message in str(error.value)


def test_a_backbone_that_trains_does_so_in_float32():
    from cllm4rec_hf.trainers.building import choose_dtype

    assert choose_dtype("auto", trains=True) == choose_dtype("float32", trains=True) == torch.float32
    with pytest.raises(CLLM4RecError, match="has float32 weights, got dtype 'bfloat16'"):
        choose_dtype("bfloat16", trains=True)
