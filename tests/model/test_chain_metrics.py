"""What the words of an answer are worth: when it points, how near its reference, whether the mask contradicts it."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from model.data.chains import answer_present, check_answer
from model.data.concepts import DIAGNOSES
from model.data.scene import Scene
from model.evaluation import chain_metrics
from model.evaluation.chain_metrics import bleu, bleu_terms, token_f1, tokens
from model.evaluation.contradiction import contradictions, says_there
from model.evaluation.figures import FIGURES, figures, row_terms, table
from model.evaluation.manifest import ManifestError, read_manifest
from model.evaluation.manifests import write_manifest
from model.evaluation.metrics import Score
from model.evaluation.question import ask, ask_each, ask_unknown
from model.evaluation.said import Said, hear
from model.evaluation.timing import SegTiming, seg_timing

ANSWER = "<think> Looking for glands. A large gland lies in the left area. </think> Found in the left area: fat <SEG>."


def field(*boxes: tuple[int, int, int, int], size: int = 100) -> np.ndarray:
    """A mask of boxes (x, y, w, h)."""
    mask = np.zeros((size, size), bool)
    for x, y, w, h in boxes:
        mask[y : y + h, x : x + w] = True
    return mask


# When it points


def test_the_first_seg_is_placed_in_words():
    assert seg_timing(ANSWER) == SegTiming(words=17, share=1.0, placed=True, extra=0)
    assert seg_timing("Here <SEG> and there, too <SEG> <SEG>.") == SegTiming(1, 1 / 4, False, 2)
    assert seg_timing("<SEG>") == SegTiming(0, 1.0, False, 0)
    assert seg_timing("No glands are found here.") is None


def test_a_place_that_is_named_only_afterwards_comes_too_late():
    assert not seg_timing("Glands <SEG> in the left area.").placed
    assert seg_timing("In the left area: glands <SEG>.").placed


# How near the reference


def test_token_f1_by_hand():
    assert token_f1("a b c d e", "a b c d f") == pytest.approx(0.8)
    assert token_f1("a a b", "a b b") == pytest.approx(2 * 2 / 6)  # each word as often as both say it
    assert token_f1("A, b", "a , B") == 1.0 and token_f1("x", "y") == 0.0
    assert tokens(ANSWER)[:3] == ["looking", "for", "glands"] and tokens("x <SEG>.") == ["x", "seg", "."]


def summed(pairs: list[tuple[str, str]]) -> float:
    terms = [bleu_terms(text, reference) for text, reference in pairs]
    return float(bleu({name: np.float64(sum(one[name] for one in terms)) for name in chain_metrics.BLEU_TERMS}))


def test_bleu_by_hand():
    # 4 of 5 words agree, 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours; as long as the reference
    assert summed([("a b c d e", "a b c d f")]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # the same, two words short of seven
    assert summed([("a b c d e", "a b c d f g h")]) == pytest.approx(0.2**0.25 * np.exp(1 - 7 / 5))
    assert summed([("a b c", "a b c")]) == 0.0  # no four words


def test_bleu_of_sums_is_that_of_sacrebleu():
    pairs = [
        (ANSWER, ANSWER.replace("large", "small").replace("left", "upper left")),
        ("<think> Looking for fat. </think> No fat is found here.", "<think> Looking for fat. </think> No fat here."),
        ("One, two; three 4.5 (five).", "One, two: three 4.5 (six) and more."),
    ]
    plain = [[chain_metrics.plain(text) for text in side] for side in zip(*pairs, strict=True)]
    expected = BLEU(smooth_method="none").corpus_score(plain[0], [plain[1]]).score / 100
    assert 0.3 < expected < 0.9 and summed(pairs) == pytest.approx(expected)


def test_without_sacrebleu_a_reference_is_refused_and_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics", None)
    chain_metrics._sacrebleu.cache_clear()
    with pytest.raises(ValueError, match=r"slidereason\[train\]"):
        chain_metrics.require_bleu()
    assert hear(ANSWER, None).reference is None  # without a reference nothing is needed


# Whether the mask contradicts it


def said(place: str = "left area", number: str = "A large gland lies") -> str:
    return f"<think> Looking for glands. {number} in the {place}. </think> Found in the {place}: glands <SEG>."


LEFT = field((0, 30, 30, 60))  # 18 % of the field, its middle at x 0.15


def test_an_answer_that_fits_is_not_contradicted():
    assert contradictions(said(), LEFT) == {"emptiness": False, "place": False, "number": False, "size": False}


@pytest.mark.parametrize(
    ("place", "mask", "wrong"),
    [
        ("left area", LEFT, False),
        ("right area", LEFT, True),
        ("upper left area", field((0, 80, 20, 20)), True),  # left, but at the bottom
        ("upper area", field((0, 45, 20, 20)), False),  # beside the class: the middle is 0.55
        ("center area", field((0, 0, 20, 20)), True),
        ("centre", field((30, 40, 30, 30)), False),
        ("bottom area", field((40, 75, 20, 20)), False),
        ("left area", field((0, 0, 100, 90)), True),  # nearly everything
    ],
)
def test_places_are_held_against_the_middle_of_the_mask(place, mask, wrong):
    assert contradictions(said(place), mask)["place"] is wrong


@pytest.mark.parametrize(
    ("extent", "share", "wrong"),
    [("the whole area", 0.9, False), ("the whole area", 0.4, True), ("most of the area", 0.4, False),
     ("most of the area", 0.2, True)],
)  # fmt: skip
def test_extents_are_held_against_the_share(extent, share, wrong):
    text = f"Found across {extent}: glands <SEG>."
    assert contradictions(text, field((0, 0, 100, int(100 * share))))["place"] is wrong


def test_many_parts_are_more_than_three():
    text = "Found across many parts of the area: glands <SEG>."
    corners = [(5, 5, 10, 10), (85, 5, 10, 10), (5, 85, 10, 10)]
    assert contradictions(text, field(*corners))["place"] is True
    assert contradictions(text, field(*corners, (85, 85, 10, 10)))["place"] is False


def spots(count: int) -> np.ndarray:
    return field(*[(12 * (n % 8) + 2, 12 * (n // 8) + 2, 8, 8) for n in range(count)])


@pytest.mark.parametrize(
    ("words", "count", "wrong"),
    [
        ("A small gland", 1, False), ("A small gland", 2, True), ("Two small glands", 2, False),
        ("Two small glands", 1, True), ("3 glands", 3, False), ("3 glands", 4, True),
        ("Several small glands", 8, False), ("Several small glands", 9, True), ("Several small glands", 1, True),
        ("Many small glands", 5, False), ("Many small glands", 4, True),
    ],
)  # fmt: skip
def test_numbers_are_held_against_the_pieces(words, count, wrong):
    assert contradictions(said(number=f"{words} lie"), spots(count))["number"] is wrong


def test_pieces_that_a_thin_bridge_joins_may_be_counted_either_way():
    joined = field((10, 20, 30, 30), (60, 20, 30, 30), (40, 34, 20, 2))
    assert contradictions(said(number="Two large glands lie"), joined)["number"] is False
    assert contradictions(said(number="A large gland lies"), joined)["number"] is False
    assert contradictions(said(number="Many large glands lie"), joined)["number"] is True


@pytest.mark.parametrize(
    ("size", "edge", "wrong"),
    [("small", 34, False), ("small", 35, True), ("medium", 17, True), ("medium", 18, False), ("medium", 54, False),
     ("medium", 56, True), ("large", 27, True), ("large", 28, False)],
)  # fmt: skip
def test_sizes_have_a_factor_of_two_as_slack(size, edge, wrong):
    # small is < 6 % of the field, medium < 15 %; twice 6 % is an edge of 34.6, half of it 17.3, twice 15 % 54.8, …
    text = said("center area", f"A {size} gland lies")
    assert contradictions(text, field((20, 20, edge, edge)))["size"] is wrong


def test_emptiness_is_the_only_thing_that_silence_can_be_wrong_about():
    denial = "<think> Looking for fat. A large gland lies in the left area. </think> No fat is found here."
    assert contradictions(denial, None) == {"emptiness": False}
    assert contradictions(denial, LEFT) == {"emptiness": True}
    assert contradictions(said(), np.zeros((1, 100, 100), bool)) == {"emptiness": True}
    assert contradictions("It is purple.", LEFT) == {}


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("Found in the left area: fat <SEG>.", True), ("No fat is found here.", False),
        ("I was not taught to recognise this, so I cannot answer.", False), ("There are no glands.", False),
        ("No fat <SEG>.", False), ("Glands are seen.", True), ("The tissue is pink.", None),
        ("Glands without necrosis <SEG>.", True),
    ],
)  # fmt: skip
def test_whether_a_conclusion_says_that_something_is_there(text, there):
    assert says_there(f"<think> Nothing of this kind is not there. </think> {text}") is there


def test_several_masks_are_taken_together():
    both = np.stack([field((0, 30, 30, 60)), field((70, 30, 30, 60))])
    assert contradictions(said(number="Two large glands lie", place="center area"), both) == {
        "emptiness": False, "place": False, "number": False, "size": False,
    }  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_the_chains_of_training_never_contradict_the_masks_they_were_made_of(seed):
    rng = np.random.default_rng(seed)
    boxes = [(*rng.integers(0, 96, 2), *rng.integers(3, 60, 2)) for _ in range(int(rng.integers(1, 12)))]
    mask = field(*boxes)
    text = answer_present({"gland": mask}, "gland", {}, rng)
    found = contradictions(text, mask)
    assert found.keys() == {"emptiness", "place", "number", "size"} and not any(found.values()), (text, boxes)


# Figures


def test_figures_by_hand():
    found = Score(True, 40, 20, 15, 100)
    missed, forced = Score(False, 30, 0, 0, 100), Score(True, 30, 30, 15, 100)
    false = Score(True, 0, 10, 0, 100)
    rows = [
        row_terms(found, found, 0.8, Said(SegTiming(10, 0.5, True, 1), {"place": True, "size": False}, "r", 0.6)),
        row_terms(missed, forced, None, Said(None, {"emptiness": False}, "r", 0.2)),
        row_terms(false, false, None, Said(SegTiming(20, 1.0, False, 0))),
    ]
    values = figures(table(rows).sum(axis=0))
    expected = {
        "emission_precision": 1 / 2, "emission_recall": 1 / 2, "dice_forced": (0.5 + 0.5) / 2,
        "boundary_f1_emitted": 0.8, "boundary_f1_with_misses": 0.4, "seg_words_before": 15, "seg_share_before": 0.75,
        "seg_after_place": 0.5, "seg_extra": 0.5, "token_f1": 0.4, "contradiction_rate": 1 / 2,
        "contradiction_place": 1.0, "contradiction_size": 0.0, "contradiction_emptiness": 0.0,
    }  # fmt: skip
    assert FIGURES.keys() - expected.keys() == {"contradiction_number"} and np.isnan(values["contradiction_number"])
    assert {name: float(values[name]) for name in expected} == pytest.approx(expected)
    assert float(values["dice_emitted"]) == pytest.approx(0.5) and "bleu4" in values


# Reference chains


def scene(name: str, *keys: str) -> Scene:
    image = np.full((100, 100, 3), (240, 225, 238), np.uint8)
    image[LEFT] = (90, 40, 130)
    absent = frozenset(DIAGNOSES) - set(keys)
    return Scene(name, "ebhi-seg", name, image, {key: LEFT for key in keys}, absent, None, "colon", "synthetic")


def test_a_manifest_holds_the_answers_that_are_due(tmp_path: Path):
    scenes = [scene("1", "polyp"), scene("2", "low_grade"), scene("3", "serrated")]
    questions = ask(scenes, DIAGNOSES, 0) + ask_unknown(scenes, 0, count=2)
    write_manifest(tmp_path / "m.jsonl", questions)
    rows = read_manifest(tmp_path / "m.jsonl")
    assert len(rows) == 8 and {row.mask is None for row in rows} == {True, False}
    for row in rows:
        assert check_answer(row.chain, row.mask is not None) == []
        assert not any(hear(row.chain, LEFT[None] if row.mask else None, row.chain).contradicted.values())
    assert all("left area" in row.chain for row in rows if row.mask)
    again = (tmp_path / "m.jsonl").read_bytes()
    write_manifest(tmp_path / "m.jsonl", questions)
    assert (tmp_path / "m.jsonl").read_bytes() == again


@pytest.mark.parametrize(("chain", "words"), [(3, "a text or null"), ("  ", "is empty")])
def test_a_chain_that_is_none_is_refused(tmp_path: Path, chain, words):
    write_manifest(tmp_path / "m.jsonl", ask([scene("1", "polyp")], DIAGNOSES, 0))
    lines = [json.loads(line) | {"chain": chain} for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ManifestError, match=f"line 1: field chain.*{words}"):
        read_manifest(tmp_path / "m.jsonl")


def test_every_picture_can_be_asked_in_every_way():
    asked = ask_each([scene("1", "polyp"), scene("2", "serrated")], DIAGNOSES, seed=4)
    kinds = ["present-named", "present-implied", "absent-named", "absent-implied"]
    assert [one.kind for one in asked] == kinds * 2 and [one.scene.id for one in asked] == ["1"] * 4 + ["2"] * 4
    assert all((one.mask is None) == one.kind.startswith("absent") for one in asked)
    assert asked[2].concept == asked[3].concept != "polyp"
    assert [one.query for one in asked] == [
        one.query for one in ask_each([scene("1", "polyp"), scene("2", "serrated")], DIAGNOSES, seed=4)
    ]
