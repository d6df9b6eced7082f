"""Attention by documents: the same hidden states and gradients as a padded batch, without the padding."""

from itertools import combinations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoXConfig, MistralConfig

from cllm4rec_hf import CLLM4RecForRecommendation
from cllm4rec_hf.modeling import attention_cllm4rec
from cllm4rec_hf.modeling.attention_cllm4rec import (
    DOCUMENT_ATTENTION,
    DocumentLayout,
    choose_attention,
    document_attention,
    encode_documents,
    group_cost,
    group_documents,
)
from tests.conftest import make_backbone

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
OTHERS = {
    # a window shorter than the documents
    "mistral": lambda: MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4),
    # soft-capped products, and a window in every other layer
    "gemma2": lambda: Gemma2Config(
        **SIZES, num_key_value_heads=2, head_dim=8, sliding_window=3, attn_logit_softcapping=2.0
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
}
LENGTHS = [7, 12, 1, 7, 3, 12]


def backbone(family, attention):
    if family in OTHERS:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(OTHERS[family]()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
    else:
        model = make_backbone(family)
    model.set_attn_implementation(attention)
    return model.requires_grad_(False)


def batch(side, size=32):
    width = max(LENGTHS)
    mask = torch.arange(width) < torch.tensor(LENGTHS).unsqueeze(1)
    mask = mask if side == "right" else mask.flip(1)
    generator = torch.Generator().manual_seed(1)
    embedded = torch.randn(len(LENGTHS), width, size, generator=generator)
    weights = torch.randn(embedded.shape, generator=generator) * mask.unsqueeze(-1)
    return mask.long(), embedded, weights


def states_and_gradient(model, mask, embedded, weights):
    embedded = embedded.clone().requires_grad_(True)
    if model.config._attn_implementation == DOCUMENT_ATTENTION:
        hidden = encode_documents(model.get_decoder(), embedded, mask)
    else:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        hidden = model.get_decoder()(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
    (hidden * weights.to(hidden.dtype)).sum().backward()
    return hidden.detach()[mask.bool()], embedded.grad[mask.bool()]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma3", *OTHERS])
def test_equals_a_padded_batch(family, side):
    # eager alone computes soft caps
    expected = states_and_gradient(backbone(family, "eager"), *batch(side))
    found = states_and_gradient(backbone(family, DOCUMENT_ATTENTION), *batch(side))
    for one, two in zip(found, expected, strict=True):
        assert (one - two).abs().max() < 2e-5 * two.abs().max()


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_products_in_bfloat16(family):
    mask, embedded, weights = batch("right")
    expected = states_and_gradient(backbone(family, "eager"), mask, embedded, weights)
    results = {}
    for attention in ("eager", DOCUMENT_ATTENTION):
        model = backbone(family, attention).to(torch.bfloat16)
        results[attention] = states_and_gradient(model, mask, embedded.bfloat16(), weights)
    for number, exact in enumerate(expected):
        error = {name: (result[number] - exact).norm() / exact.norm() for name, result in results.items()}
        assert error[DOCUMENT_ATTENTION] < 1.3 * error["eager"] < 0.1


def test_gradient_checkpointing_computes_the_same():
    mask, embedded, weights = batch("right")
    model = backbone("llama", DOCUMENT_ATTENTION)
    expected = states_and_gradient(model, mask, embedded, weights)
    model.gradient_checkpointing_enable()
    model.train()
    found = states_and_gradient(model, mask, embedded, weights)
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(found, expected, strict=True))


def test_a_batch_without_padding_and_without_a_mask():
    _, embedded, _ = batch("right")
    model = backbone("llama", DOCUMENT_ATTENTION)
    hidden = encode_documents(model.get_decoder(), embedded, None)
    expected = encode_documents(model.get_decoder(), embedded, torch.ones(embedded.shape[:2]))
    assert torch.equal(hidden, expected)


def test_layers_compute_no_padding():
    mask, embedded, _ = batch("right")
    model = backbone("llama", DOCUMENT_ATTENTION)
    seen = []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0].shape[1]))
    encode_documents(model.get_decoder(), embedded, mask)
    assert seen == [sum(LENGTHS)]


def test_documents_of_any_length_in_several_groups(monkeypatch):
    # without a price of their own, as many groups as there are lengths
    monkeypatch.setattr(attention_cllm4rec, "_GROUP_CELLS", 0)
    mask, embedded, weights = batch("right")
    assert len(DocumentLayout(mask).groups) == len(set(LENGTHS))
    found = states_and_gradient(backbone("llama", DOCUMENT_ATTENTION), mask, embedded, weights)
    expected = states_and_gradient(backbone("llama", "eager"), mask, embedded, weights)
    for one, two in zip(found, expected, strict=True):
        assert (one - two).abs().max() < 2e-5 * two.abs().max()


def test_groups_cost_least():
    generator = torch.Generator().manual_seed(0)
    several = 0
    for _ in range(30):
        lengths = sorted(torch.randint(1, 400, (7,), generator=generator).tolist(), reverse=True)
        groups = group_documents(lengths)
        assert sum(count for count, _ in groups) == len(lengths)
        least = min(
            sum(group_cost(end - start, lengths[start]) for start, end in zip((0, *cuts), (*cuts, 7), strict=True))
            for size in range(7)
            for cuts in combinations(range(1, 7), size)
        )
        assert sum(group_cost(*group) for group in groups) == least
        start = 0
        for count, length in groups:
            assert length == lengths[start]
            start += count
        several += len(groups) > 1
    assert several > 10


def test_chosen_where_nothing_was_said(tmp_path):
    model = CLLM4RecForRecommendation.from_backbone(make_backbone("llama"), 3, 4)
    assert model.backbone.config._attn_implementation == DOCUMENT_ATTENTION
    model.save_pretrained(tmp_path)
    # where it runs is no part of a checkpoint
    assert DOCUMENT_ATTENTION not in (tmp_path / "config.json").read_text()
    assert (
        CLLM4RecForRecommendation.from_pretrained(tmp_path).backbone.config._attn_implementation == DOCUMENT_ATTENTION
    )
    said = CLLM4RecForRecommendation.from_pretrained(tmp_path, attn_implementation="eager")
    assert said.backbone.config._attn_implementation == "eager"
    eager = make_backbone("llama")
    eager.set_attn_implementation("eager")
    chosen = CLLM4RecForRecommendation.from_backbone(eager, 3, 4)
    assert chosen.backbone.config._attn_implementation == "eager"


def test_families_that_cannot_keep_theirs():
    t5 = make_backbone("t5")
    choose_attention(t5)
    assert t5.config._attn_implementation == "sdpa"
    # bfloat16 on a CPU: the backward pass of sdpa is slow
    t5.to(torch.bfloat16)
    choose_attention(t5)
    assert t5.config._attn_implementation == "eager"
    chunked = make_backbone("qwen3")
    chunked.config.layer_types = ["chunked_attention", "full_attention"]
    choose_attention(chunked)
    assert chunked.config._attn_implementation == "sdpa"


def test_what_is_not_computed_is_refused():
    layout = DocumentLayout(torch.ones(1, 2))
    states = torch.zeros(1, 2, 2, 4)
    with pytest.raises(NotImplementedError, match="s_aux.*attn_implementation='sdpa'"):
        document_attention(torch.nn.Identity(), states, states, states, None, documents=layout, s_aux=torch.zeros(2))


def test_the_backbone_alone_still_attends_to_padded_batches():
    model, reference = backbone("llama", DOCUMENT_ATTENTION), backbone("llama", "sdpa")
    ids, mask = torch.arange(1, 9).view(2, 4), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    found = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, reference.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False))
