"""The weights that ship: small enough, and they do what the model card says on pictures made on the spot."""

from pathlib import Path

import numpy as np
import pytest

from model.data.synthetic import synthetic_scenes
from model.predictor import CHECKPOINTS, load_segmenter
from model.segmenter import TileBatch


@pytest.fixture(scope="module")
def shipped():
    return load_segmenter("tiny")


@pytest.fixture(scope="module")
def scenes():
    return synthetic_scenes(np.random.default_rng(2026), 36, size_px=224, mpp_range=(0.9, 1.1))


def ask(segmenter, scenes, query):
    images = np.stack([scene.image for scene in scenes])
    n = len(scenes)
    return segmenter.predict(TileBatch(images, np.full(n, 1.0, np.float32), [query] * n, np.zeros(n, bool)))


def test_it_is_small(shipped):
    assert shipped.card.parameters <= 12_000_000
    assert sum(path.stat().st_size for path in Path(CHECKPOINTS / "tiny").iterdir()) <= 25_000_000
    assert "adenocarcinoma" in shipped.card.targets


def test_it_finds_tumour_where_there_is_some_and_keeps_still_elsewhere(shipped, scenes):
    answers = ask(shipped, scenes, "Where is the tumour?")
    with_tumour = [(a, s) for a, s in zip(answers, scenes, strict=True) if "tumour" in s.masks]
    without = [a for a, s in zip(answers, scenes, strict=True) if "tumour" in s.absent]
    assert with_tumour and without
    dice = []
    for answer, scene in with_tumour:
        if answer.emitted:
            found, truth = answer.masks.max(0) > 0.5, scene.masks["tumour"]
            dice.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert len(dice) >= 0.7 * len(with_tumour)
    assert np.mean(dice) > 0.75
    assert np.mean([a.emitted for a in without]) < 0.4


NEVER_TAUGHT = (
    "Where is the amyloid?", "show me the moon", "outline the bicycles", "is there any zebra here?", "find melanin",
    "Where are the Reed-Sternberg cells?", "segment the asbestos bodies", "mark every helicopter",
    "Is there calcification?",
    "show hyaline cartilage",
)  # fmt: skip


def test_what_was_never_taught_is_mostly_said_to_be_so(shipped, scenes):
    answers = [answer for query in NEVER_TAUGHT for answer in ask(shipped, scenes[:3], query)]
    said = ["taught" in answer.text for answer in answers]
    assert np.mean([answer.emitted for answer in answers]) <= 0.2
    assert np.mean(said) >= 0.6


def test_every_chain_follows_the_grammar(shipped, scenes):
    for answer in ask(shipped, scenes[:12], "Are there lymphocytes?"):
        assert answer.text.startswith("<think>") and answer.text.count("</think>") == 1
        assert answer.emitted == ("<SEG>" in answer.text)
