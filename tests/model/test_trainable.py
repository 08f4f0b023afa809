"""What learns and what stays: LoRA beside frozen weights, folded in before saving; single rows of the vocabulary."""

import pytest
import torch

from model.training.trainable import LoraSettings, Trainable, merge_lora, without_lora
from tests.model.tiny import small_model, small_paper_model

PAPER = Trainable(
    trained=("sam_encoder.*adapter*", "mask_decoder.*", "seg_adapter.*"), lora=LoraSettings(), seg_row=True
)


def _learning(model) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("make", [small_model, small_paper_model])
def test_the_papers_parts_learn_and_no_other(make):
    model = make()
    PAPER.prepare(model)
    for name in _learning(model):
        fits = ".lora_" in name or "adapter" in name or name.startswith(("mask_decoder.", "seg_adapter."))
        assert fits or name.endswith(("embed_tokens.weight", "lm_head.weight")), name
    adapted = {name.split(".lora_")[0] for name in _learning(model) if ".lora_" in name}
    depth = model.config.language.depth + model.config.vision.depth
    assert len(adapted) == 4 * depth, "q, k, v and o of every block of both"


def test_folded_adapters_leave_the_names_of_a_checkpoint_and_the_same_output():
    model = small_model()
    names = set(model.state_dict())
    PAPER.prepare(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                weight.normal_(0, 0.1)
    model.eval()
    images = torch.randint(0, 255, (1, model.config.tile_px, model.config.tile_px, 3), dtype=torch.uint8)
    before = model.see(images).tokens
    with without_lora(model):
        plain = model.see(images).tokens
    assert not torch.allclose(before, plain, atol=1e-3), "the adapters do something, and switched off they do not"
    merge_lora(model)
    assert set(model.state_dict()) == names
    assert torch.allclose(model.see(images).tokens, before, atol=1e-4)


def test_only_the_row_of_seg_moves():
    model = small_model()
    Trainable(trained=("seg_adapter.*",), seg_row=True).prepare(model)
    weight = model.language_model.text_model.embed_tokens.weight
    before = weight.detach().clone()
    from model.training.optimiser import build_optimiser

    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimiser = build_optimiser(named, 0.1, weight_decay=0.5, faster={})
    (weight.square().sum() + model.language_model.embed(torch.tensor([model.tokenizer.seg])).sum()).backward()
    optimiser.step()
    moved = (weight != before).any(1).nonzero()[:, 0].tolist()
    assert moved == [model.tokenizer.seg]


def test_what_is_frozen_is_named_by_how_it_begins():
    model = small_model()
    Trainable(frozen=("sam_encoder.",)).prepare(model)
    assert not any(weight.requires_grad for weight in model.sam_encoder.parameters())
    assert all(weight.requires_grad for weight in model.pathology_encoder.parameters())


@pytest.mark.parametrize(
    ("told", "named"),
    [({"frozen": ["sam.encoder"]}, "frozen.*'sam.encoder'"), ({"trained": ["mask_decoder"]}, "trained.*'mask_decoder'"),
     ({"lora": {"parts": ["no."]}}, "lora: no layer")],
)  # fmt: skip
def test_parts_that_are_not_there_are_named(told, named):
    with pytest.raises(KeyError, match=named):
        Trainable.from_json(told).prepare(small_model())
