"""Chains say what was measured, keep the grammar, and never contradict the mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.chains import (
    EXEMPLAR_PHRASE,
    answer_absent,
    answer_exemplar,
    answer_present,
    answer_unknown,
    check_answer,
    largest,
    observation,
)
from model.data.concepts import CONCEPTS
from model.data.corpus import text_corpus, text_episodes
from model.data.episodes import present_and_absent, sample_episode

FACTS = {"darker": 0.2, "nuclei": 0.5, "solidity": 0.8, "lumen": 0.0}


def corner(size: int = 40, edge: int = 12) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[:edge, :edge] = True
    return mask


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_every_sampled_answer_passes_its_own_checks(seed):
    for episode in text_episodes(np.random.default_rng(seed), 3):
        assert check_answer(episode.answer, bool(episode.targets)) == [], episode
        assert len(episode.answer.split()) <= 60


def test_the_place_named_is_the_masks():
    rng = np.random.default_rng(0)
    mask = corner()
    turned = mask[::-1, ::-1]
    for words, m in (("in the upper left area", mask), ("in the lower right area", turned)):
        answer = answer_present({"polyp": m}, "polyp", {"polyp": FACTS}, rng)
        assert answer.split("<SEG>")[0].count(words) == 2
        assert answer.rstrip(".").endswith("polyp tissue <SEG>")


def test_measured_words_follow_the_facts():
    dense = observation(corner(), "low_grade", FACTS)
    pale = observation(corner(), "low_grade", FACTS | {"darker": -0.2, "nuclei": 0.1, "solidity": 0.99, "lumen": 0.2})
    assert "much darker" in dense and "dense nuclei" in dense and "irregular edges" in dense and "closed" in dense
    assert "paler" in pale and "sparse nuclei" in pale and "smooth edges" in pale and "open lumens" in pale


def test_number_and_verb_agree():
    two = corner() | corner()[::-1, ::-1]
    assert observation(corner(), "polyp", {}).startswith("A medium gland lies")
    assert observation(two, "polyp", {}).startswith("Two medium glands lie")


def test_absent_answer_names_target_and_what_is_there_instead():
    rng = np.random.default_rng(1)
    seen = {"gland": corner(), "low_grade": corner(), "stroma": ~corner()}
    answer = answer_absent("malignant_gland", seen, {}, rng)
    assert "adenocarcinoma" in answer and "low-grade dysplasia" in answer and "<SEG>" not in answer
    assert check_answer(answer, False) == []


def test_absent_answer_of_an_empty_picture():
    answer = answer_absent("fat", {}, {}, np.random.default_rng(2))
    assert check_answer(answer, False) == [] and "No fat is" in answer


def test_largest_prefers_the_same_family_and_ignores_specks():
    speck = np.zeros((100, 100), bool)
    speck[0, 0] = True
    masks = {"stroma": np.ones((100, 100), bool), "polyp": corner(100, 20), "low_grade": speck}
    assert largest(masks, excluding="high_grade") == "polyp"
    assert largest(masks, excluding="fat") == "stroma"
    assert largest({"fat": speck}, excluding="stroma") is None


def test_unknown_says_so_and_repeats_nothing():
    answer = answer_unknown("where is the moon?", np.random.default_rng(3))
    assert "not taught" in answer or "the things I was taught" in answer
    assert "moon" not in answer and check_answer(answer, False) == []


def test_exemplar_never_names_the_class():
    rng = np.random.default_rng(4)
    answer = answer_exemplar({"fat": corner()}, "fat", {}, rng, present=True)
    assert EXEMPLAR_PHRASE in answer and "fat" not in answer and check_answer(answer, True) == []
    answer = answer_exemplar({"nuclei": corner()}, "nuclei", {}, rng, present=True)
    assert check_answer(answer, True) == []
    assert check_answer(answer_exemplar({}, "nuclei", {}, rng, present=False), False) == []


def test_present_of_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="empty"):
        answer_present({"fat": np.zeros((9, 9), bool)}, "fat", {}, np.random.default_rng(0))


GOOD = "<think> Dark glands lie in the top area. </think> Found in the top area: glands <SEG>."


@pytest.mark.parametrize(
    ("text", "target", "problem"),
    [
        (GOOD, False, "absent but there is"),
        ("<think> Nothing. </think> No fat is found here.", True, "present but there is no"),
        ("Found in the top area: glands <SEG>.", True, "grammar"),
        ("<think> a <SEG> at the top </think> glands <SEG>", True, "inside the thought"),
        ("<think> Dark glands. </think> Found: glands <SEG>.", True, "no location word"),
        ("<think> Dark glands at the top. </think> <SEG>", True, "without its phrase"),
        ("<think> The mask at the top shows glands. </think> Found: glands <SEG>.", True, "outline"),
        ("<think> Pale. </think> All fine here.", False, "neither denies nor declines"),
        ("<think> top </think> glands <SEG> <SEG>", True, "without its phrase"),
    ],
)
def test_checks_find_what_is_wrong(text, target, problem):
    assert check_answer(GOOD, True) == []
    assert any(problem in found for found in check_answer(text, target))


def test_episodes_never_ask_about_the_unknown_and_answer_by_the_mask():
    masks = {"low_grade": corner(), "gland": corner(), "fat": np.zeros((40, 40), bool)}
    rng = np.random.default_rng(5)
    asked = set()
    for _ in range(400):
        episode = sample_episode(masks, frozenset({"polyp"}), {}, rng)
        asked.add(episode.concept)
        assert bool(episode.targets) == (episode.concept in ("low_grade", "gland")) == ("<SEG>" in episode.answer)
        assert (episode.kind == "unknown") == (episode.concept is None)
    assert asked == {None, "low_grade", "gland", "fat", "polyp"}


def test_slivers_are_neither_present_nor_absent():
    sliver = np.zeros((100, 100), bool)
    sliver[0, :3] = True
    present, absent = present_and_absent({"fat": sliver}, frozenset())
    assert "fat" not in present and "fat" not in absent


def test_the_corpus_is_reproducible_and_its_answers_use_few_words():
    once, again = (text_corpus(np.random.default_rng(6), 300) for _ in range(2))
    assert once == again
    words = {word.strip(".,:") for line in once for word in line.split("\n")[1].split()}
    assert len(words) < 220
    assert set("\n".join(once)) and all(line.count("\n") == 1 for line in once)
    assert {c.phrase.split()[0] for c in CONCEPTS.values()} <= words
