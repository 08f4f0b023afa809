"""What a training run is said to cost, against weights, operations and tensors that really are there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flops
from benchmarks.record import RESULTS
from benchmarks.training_cost import (
    GIB,
    LEARNS,
    PAPER,
    PASSES_ON,
    STAGES,
    Data,
    Machine,
    cost_of,
    costs_of,
    count_weights,
    extras,
    inside_bytes,
    main,
    mask_bytes,
    memory_of,
    passes_of,
    prepared,
    rows_of,
    table_of,
)
from model.builders import build
from model.config import PathChatConfig
from model.medsam import BatchedMaskDecoder
from model.training.recompute import recompute_activations
from model.training.settings import TrainSettings
from model.training.ssl import Ssl
from model.training.trainable import Trainable
from tests.model.tiny import small_model, small_paper_config, small_paper_model

PAGE = Path(__file__).parents[1] / "docs" / "training.md"


@pytest.fixture(scope="module")
def settings() -> TrainSettings:
    return TrainSettings.read(PAPER)


@pytest.fixture(scope="module")
def costs(settings):
    return costs_of(settings, Machine(), Data())


def test_weights_are_those_of_the_model(settings, costs):
    plain = build(settings.model, small_model().tokenizer, empty=True)
    every = sum(weight.numel() for weight in plain.parameters())
    assert sum(n for n, _ in costs["ssl"].weights.values()) == every, "no adapters there"
    for name in STAGES:
        model = prepared(settings.stage(name), settings.model)
        learns = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        assert sum(n for _, n in costs[name].weights.values()) == learns
        held = sum(weight.numel() * weight.itemsize for weight in model.parameters())
        more = extras(settings.stage(name), settings.model)
        assert costs[name].memory["weights"] == held + 4 * more
        assert costs[name].memory["learning"] == 22 * (learns + more)


def test_what_only_a_stage_needs_is_what_it_makes():
    config, section = small_paper_config(), TrainSettings.read(PAPER).stage("ssl")
    heads = Ssl(None, None, config, 2, 0).modules()
    assert extras(section, config) == sum(weight.numel() for weight in heads.parameters())


def test_the_paper_fits_its_gpus_with_room_to_spare(costs):
    for cost in costs.values():
        assert sum(cost.memory.values()) < 0.6 * Machine().memory


def test_in_fp32_and_with_everything_learning_it_would_not(settings):
    section = settings.stage("sft")
    whole = replace(section, trainable=Trainable())
    model = prepared(whole, settings.model)
    assert sum(memory_of(whole, settings, model, Data()).values()) > 2 * Machine().memory


def test_time_by_hand(settings, costs):
    """Of `sft` operations alone; of `so-grpo` also the weights that are read for every drawn token."""
    sft, rl = costs["sft"], costs["so-grpo"]
    assert sft.step_s == pytest.approx(sft.step_flops / (8 * 989e12 * 0.35))
    assert sft.hours == pytest.approx(sft.step_s * 7415 / 3600)
    read = 2 * (flops.language_weights(settings.model.language) + 3584 * 152_064)
    drawn = 2 * 160 * read / (3.35e12 * 0.5) / 2  # two micro-batches, each drawn for two steps
    assert rl.step_s == pytest.approx(rl.step_flops / (8 * 989e12 * 0.35) + drawn)
    assert sft.epochs == pytest.approx(7415 * 64 / (0.8 * 118_667))
    twice = cost_of("sft", settings, Machine(mfu=0.7), Data())
    assert twice.hours == pytest.approx(sft.hours / 2)
    assert rows_of(settings.stage("so-grpo"), 1) == 4 * 8


def test_most_of_sft_is_the_language_model_thrice(settings, costs):
    """6.5 G weights in the stack, forward, again and backward, over 352 tokens a question, or 576 with an exemplar."""
    weights = flops.language_weights(settings.model.language)
    assert 6.5e9 < weights < 6.6e9
    tokens = 0.7 * Data().tokens(settings.model) + 0.3 * Data().tokens(settings.model, exemplar=True)
    share = 64 * 3 * 2 * weights * tokens / costs["sft"].step_flops
    assert 0.6 < share < 0.9


@pytest.mark.parametrize("kept", [True, False])
def test_passes_are_what_torch_counts(kept):
    """The language model on embeddings that want a gradient: it learns itself (4 passes), or passes it on (3)."""
    model = small_paper_model().eval()
    Trainable(frozen=("language_model.",) if kept else ("sam_encoder.",)).prepare(model)
    c = model.config.language
    assert passes_of(model, "language_model") is (PASSES_ON if kept else LEARNS)
    recompute_activations(model)
    length = 24
    embeds = torch.randn(1, length, c.dim, requires_grad=True)
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        model.language_model(embeds, torch.arange(length).expand(3, 1, length)).sum().backward()
    layers = 2 * flops.language_weights(c) * length
    scores = 4 * c.depth * c.dim * length * length  # torch counts what is masked, too
    passes = passes_of(model, "language_model")
    never_again = 2 * c.depth * c.dim * c.mlp_dim * length  # a block's last product; nothing has to be kept of it
    assert counted.get_total_flops() == layers * passes.layers + scores * passes.scores - never_again


def test_scores_are_part_of_the_whole():
    c = small_paper_config()
    seen, surveyed = flops.see_scores_flops(c), flops.survey_scores_flops(c)
    assert seen == 4 * 2 * (4 * 4 + 1 + 3) ** 2 * 32
    assert surveyed == 4 * 36 * 32 * (2 * (5 * 5 + 5) + (6 * 6 + 6))  # two blocks in windows, one everywhere
    assert seen < flops.see_flops(c) and surveyed < flops.survey_flops(c)
    assert flops.scores_flops(c.language, 3) == 4 * 2 * 64 * (1 + 2 + 3)
    assert flops.projector_flops(c) == 2 * 4 * (4 * 32 * 64 + 64 * 64)


def test_a_mask_costs_what_torch_counts():
    model = small_paper_model()
    c = model.config
    features = [torch.zeros(1, c.sam.out_dim, 6, 6)]
    with FlopCounterMode(display=False) as counted, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.decode_masks(features, torch.zeros(5, dtype=torch.long), torch.zeros(5, c.language.dim))
    places = 2 * 36 * 2 * c.sam.out_dim // 2  # once for all masks
    assert counted.get_total_flops() == 5 * flops.decode_masks_flops(c) + places


def test_a_block_keeps_no_more_than_is_said():
    """Tensors that autograd keeps under autocast, weights left out; the estimate is no wild guess either."""
    config = replace(
        small_paper_config(),
        language=replace(small_paper_config().language, dim=256, mlp_dim=1280, heads=4, mrope_section=(8, 12, 12)),
        vision=replace(small_paper_config().vision, dim=128, swiglu=False),
    )
    model = build(config, small_model().tokenizer).train()
    Trainable(frozen=("language_model.", "pathology_encoder."), frozen_dtype="bf16").prepare(model)
    c = model.config
    embeds = torch.randn(1, 64, c.language.dim, dtype=torch.bfloat16, requires_grad=True)
    positions = torch.arange(64).expand(3, 1, 64)
    text = _kept(model, lambda: model.language_model(embeds, positions)) / (64 * c.language.depth)
    said = inside_bytes(c.language.dim, c.language.mlp_dim, 4)
    assert 0.4 * said < text < said
    pixels = torch.randn(1, 3, 64, 64, requires_grad=True)
    seen = _kept(model, lambda: model.pathology_encoder(pixels)) / (20 * c.vision.depth)
    said = inside_bytes(c.vision.dim, c.vision.dim * c.vision.mlp_ratio, 2)
    assert 0.4 * said < seen < said


def test_a_mask_keeps_no_more_than_is_said(settings):
    """SAM's decoder at the paper's size."""
    decoder = BatchedMaskDecoder(settings.model.sam)
    features, prompts = [torch.randn(1, 256, 64, 64)], torch.randn(2, 256, requires_grad=True)
    kept = _kept(decoder, lambda: decoder(features, torch.zeros(2, dtype=torch.long), prompts)[0].sigmoid().mean()) / 2
    assert 0.7 * mask_bytes(settings.model) < kept < mask_bytes(settings.model)


def _kept(module: torch.nn.Module, forward) -> int:
    """Bytes of the tensors that a forward pass leaves for the backward pass, each once."""
    own = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # or another tensor might come to lie in the same place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        alive.append(forward())
    return sum(kept.values())


def test_longer_answers_and_more_rollouts_cost_more(settings, costs):
    longer = cost_of("so-grpo", settings, Machine(), Data(answer=200, longest=192))
    assert longer.step_s > costs["so-grpo"].step_s
    told = dict(settings.stages["so-grpo"])
    fewer = replace(settings, stages={**settings.stages, "so-grpo": {**told, "rl": {"rollouts": 4}}})
    half = cost_of("so-grpo", fewer, Machine(), Data())
    assert half.memory["logits"] == costs["so-grpo"].memory["logits"] / 2
    assert half.step_flops < 0.6 * costs["so-grpo"].step_flops


def test_data_of_the_paper():
    c: PathChatConfig = TrainSettings.read(PAPER).model
    assert c.image_tokens == 14 * 14
    assert Data().tokens(c) == 352  # 48 + 196 + 100, padded to 32
    assert Data().tokens(c, exemplar=True) == 544


def test_the_tables_that_are_told_are_those_of_now(costs, capsys):
    """`python -m benchmarks.run training_cost` writes them, and docs/training.md repeats them."""
    table = table_of(costs)
    assert (RESULTS / "training_cost.md").read_text() == table
    page = PAGE.read_text(encoding="utf-8")
    assert all(part in page for part in table.split("\n\n"))
    assert main([]) == 0
    assert capsys.readouterr().out == table


def test_tiny_is_no_special_case():
    tiny = TrainSettings.read(PAPER.with_name("tiny.json"))
    cost = cost_of("sft", tiny, Machine(gpus=1), Data())
    assert sum(cost.memory.values()) < 2 * GIB
    every = count_weights(prepared(tiny.stage("sft"), tiny.model))
    assert all(whole == learns for whole, learns in every.values())


def test_an_encoder_that_learns_is_gone_through_four_times():
    model = small_paper_model().eval()
    Trainable(trained=("pathology_encoder.*",)).prepare(model)
    recompute_activations(model)
    c = model.config
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        model.pathology_encoder(torch.randn(1, 3, 64, 64)).sum().backward()
    stem = 2 * 16 * 3 * 16 * 16 * 32  # forward, and the gradient of its weights
    blocks = flops.see_flops(c) - flops.projector_flops(c) - stem
    assert counted.get_total_flops() == 4 * blocks + 2 * stem
