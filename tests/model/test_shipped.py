"""The weights that ship: small enough, and they do what the model card says on pictures made on the spot."""

from pathlib import Path

import numpy as np
import pytest

from model.data.concepts import CONCEPTS, DIAGNOSES
from model.data.foreign import heldout_pairs
from model.data.synthetic import synthetic_scenes
from model.exemplar import Exemplar
from model.predictor import CHECKPOINTS, EVIDENCE_FOR, load_segmenter
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


def test_no_class_speaks_in_the_mask_of_a_diagnosis_of_glands(shipped):
    """Their stand-in `gland` tore holes into right masks; tumour without its own class spills over the slide."""
    columns = shipped.model.config.dense_classes
    spoken = {concept.key for concept in CONCEPTS.values() if EVIDENCE_FOR.get(concept.phrase) in columns}
    assert spoken == {key for key in columns if key not in DIAGNOSES}
    assert EVIDENCE_FOR[CONCEPTS["tumour"].phrase] == "tumour"


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


def test_what_nobody_taught_is_found_by_example(shipped):
    """Matter of families that never trained: with the outline, without it, and with everything else outlined."""
    pairs = list(heldout_pairs(36, seed=2027))
    n, here = len(pairs), [i for i, pair in enumerate(pairs) if pair.mask is not None]
    images = np.stack([pair.image for pair in pairs])

    def dice_by(outline) -> float:
        shown = [outline(pair) for pair in pairs] if outline else ()
        asked = ["Find the same as in the example."] * n
        batch = TileBatch(images, np.full(n, 1.0, np.float32), asked, np.zeros(n, bool), exemplars=shown)
        answers = shipped.predict(batch)
        return np.mean([dice(answers[i].masks.max(0) > 0.5, pairs[i].mask) if answers[i].emitted else 0 for i in here])

    with_outline = dice_by(lambda pair: Exemplar(pair.reference, pair.reference_mask))
    assert with_outline > dice_by(None) + 0.15
    assert with_outline > dice_by(lambda pair: Exemplar(pair.reference, ~pair.reference_mask)) + 0.15
    assert with_outline > np.mean([dice(np.ones_like(pairs[i].mask), pairs[i].mask) for i in here])


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))
