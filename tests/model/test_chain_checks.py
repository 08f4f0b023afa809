"""A chain is held against picture and mask: what is right passes, in the template's words or in free ones."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.chains.checks import BLOCKING, NAMES, Truth, check_chain, truth_from
from model.chains.description import describe, measurements
from model.chains.lexicon import is_denied, mentions, sentences
from model.chains.measures import more_facts, nucleus_diameters, see
from model.chains.words import BANDS, word_for
from model.data.chains import answer_exemplar, answer_unknown, observation
from model.data.concepts import CONCEPTS, DIAGNOSES, known_in
from model.data.episodes import sample_episode
from model.data.readers import data_folder, read_ebhi, with_facts
from tests.model.chain_fakes import PINK, PURPLE, disc, gland_picture

FACTS = {"darker": 0.2, "nuclei": 0.5, "nuclei_around": 0.2, "solidity": 0.8, "lumen": 0.0}
OTHERS = frozenset(DIAGNOSES) - {"low_grade"} | {"tumour"}


def square(size: int = 90, start: int = 3, edge: int = 25) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[start : start + edge, start : start + edge] = True
    return mask


UPPER_LEFT = square()
BOTH_CORNERS = UPPER_LEFT | UPPER_LEFT[::-1, ::-1]


def truth(mask: np.ndarray = UPPER_LEFT, asked: str = "low_grade", kind: str = "named") -> Truth:
    """Low-grade dysplasia is in the picture and nothing else."""
    targets = ("low_grade",) if asked == "low_grade" else ()
    masks = {"low_grade": mask, "gland": mask}
    return truth_from(masks, targets, asked, kind, OTHERS, facts=dict.fromkeys(masks, FACTS))


def chain(thought: str, conclusion: str = "In the upper left area there is low-grade dysplasia <SEG>.") -> str:
    return f"<think> {thought} </think> {conclusion}"


PRESENT = (
    "I need to find low-grade dysplasia. In the upper left there is a single medium-sized gland, clearly darker than "
    "the surrounding tissue, with crowded, hyperchromatic nuclei and no visible lumen; its borders are irregular. "
    "There is no sign of invasion, which argues against adenocarcinoma. This is consistent with low-grade dysplasia.",
    "The question asks for low-grade dysplasia. A gland in the upper left corner is much darker than its surroundings, "
    "which are paler and hold sparse nuclei. Unlike a polyp, the nuclei are densely packed. The findings favour "
    "low-grade dysplasia rather than adenocarcinoma.",
    "Looking for low-grade dysplasia. One gland lies on the left, near the top. Adjacent stroma in the lower right "
    "area shows open spaces. The gland fits low grade dysplasia.",
    "What stands out is one gland in the upper left area, with dense nuclei. The lumen is closed. Low-grade dysplasia "
    "fits; high-grade dysplasia is unlikely, and no carcinoma is seen.",
)
ABSENT = (
    ("Looking for adenocarcinoma: irregular fused invading glands. A medium gland with dense nuclei lies in the upper "
     "left area. Invasive adenocarcinoma would show fused glands. This fits low-grade dysplasia.",
     "No adenocarcinoma is found in this area."),
    ("Asked for adenocarcinoma. The gland in the upper left is dysplastic, without features of adenocarcinoma; it fits "
     "low-grade dysplasia.", "Adenocarcinoma is not present in this picture."),
)  # fmt: skip


@pytest.mark.parametrize("thought", PRESENT)
def test_free_words_that_are_true_pass(thought):
    assert check_chain(chain(thought), truth()) == []


@pytest.mark.parametrize(("thought", "conclusion"), ABSENT)
def test_free_words_about_an_absent_target_pass(thought, conclusion):
    assert check_chain(chain(thought, conclusion), truth(asked="malignant_gland", kind="absent")) == []


def test_places_of_single_pieces_pass():
    text = chain(
        "Two medium glands lie one in the upper left and one in the lower right area. This fits low-grade dysplasia.",
        "Found in the upper left and the lower right areas: low-grade dysplasia <SEG>.",
    )
    assert check_chain(text, truth(BOTH_CORNERS)) == []
    assert [problem.code for problem in check_chain(text, truth())] == ["number", "location", "location"]


@pytest.mark.parametrize(
    ("code", "thought"),
    [
        ("location", "One dark gland lies in the lower right area. This fits low-grade dysplasia."),
        ("location", "A gland is seen at the bottom."),
        ("location", "A gland fills the whole area."),
        ("location", "A gland lies in the center."),
        ("number", "Many glands lie in the upper left area."),
        ("number", "Two glands lie in the upper left area."),
        ("size", "A small gland lies in the upper left area."),
        ("size", "Large dark glands lie in the upper left area."),
        ("tone", "The gland in the upper left area is paler than the surrounding tissue."),
        ("tone", "A gland in the upper left area, as bright as around."),
        ("tone", "A gland in the upper left area with darker surroundings."),
        ("nuclei", "A gland in the upper left area with sparse nuclei."),
        ("nuclei", "In the upper left area the nuclei are few."),
        ("lumens", "A gland in the upper left area with wide open lumens."),
        ("lumens", "In the upper left area the lumens are dilated."),
        ("edges", "A gland in the upper left area with smooth edges."),
        ("other-diagnosis", "A gland in the upper left area. This fits adenocarcinoma."),
        ("other-diagnosis", "A gland in the upper left area with features of a squamous cell carcinoma."),
        ("other-diagnosis", "A gland in the upper left area, next to lymphoma."),
        ("denies-target", "A gland in the upper left area. There is no low-grade dysplasia."),
        ("outline", "A gland is outlined in the upper left area."),
        ("markup", "**A gland** in the upper left area."),
        ("too-long", "A gland in the upper left area. " + "It is seen again. " * 40),
    ],
)
def test_what_mask_or_picture_contradict_is_named(code, thought):
    found = check_chain(chain(thought), truth())
    assert [problem.code for problem in found] == [code]
    assert found[0].quote.lower() in thought.lower() and found[0].message


def test_a_contradiction_says_what_was_measured():
    (found,) = check_chain(chain("A gland lies in the lower right area."), truth())
    assert found.quote == "in the lower right" and found.message.endswith("measured upper left")
    (found,) = check_chain(chain("A gland in the upper left area with sparse nuclei."), truth())
    assert found.message == "'sparse nuclei' is contradicted: measured dense (0.50)"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("grammar", "In the upper left area: low-grade dysplasia <SEG>."),
        ("seg-in-thought", chain("A gland <SEG> in the upper left area.", "There: low-grade dysplasia.")),
        ("seg-missing", chain("A gland in the upper left area.", "No, it is absent here.")),
        ("seg-count", chain("A gland.", "In this area: low-grade dysplasia <SEG> and low-grade dysplasia <SEG>.")),
        ("seg-phrase", chain("A gland.", "In the upper left area: <SEG>.")),
        ("no-location", chain("A dark gland.", "Found: low-grade dysplasia <SEG>.")),
        ("wrong-phrase", chain("A gland.", "In the upper left area: glands <SEG>.")),
    ],
)
def test_the_form_is_checked(code, text):
    assert code in {problem.code for problem in check_chain(text, truth())}
    assert (code in BLOCKING) == (code not in ("no-location", "wrong-phrase"))


def test_absent_targets_are_not_affirmed_and_the_unknown_is_declined():
    absent = truth(asked="malignant_gland", kind="absent")
    text = chain("The gland in the upper left area fits adenocarcinoma.", "No adenocarcinoma is found here.")
    assert [problem.code for problem in check_chain(text, absent)] == ["affirms-absent"]
    text = chain("It fits low-grade dysplasia.", "Adenocarcinoma lies in the upper left area: adenocarcinoma <SEG>.")
    assert {"seg-unexpected", "affirms-absent"} <= {problem.code for problem in check_chain(text, absent)}
    silent = chain("It fits low-grade dysplasia.", "Nothing else here.")
    assert [problem.code for problem in check_chain(silent, absent)] == ["no-denial"]
    unknown = replace(absent, concept=None, kind="unknown")
    assert check_chain(answer_unknown("Where is the moon?", np.random.default_rng(0)), unknown) == []
    knowing = chain("Looking for the moon.", "No moon is found here.")
    assert [problem.code for problem in check_chain(knowing, unknown)] == ["no-decline"]


def test_an_answer_by_example_never_names_the_class():
    asked = replace(truth(), kind="exemplar")
    good = answer_exemplar({"low_grade": UPPER_LEFT}, "low_grade", {"low_grade": FACTS}, np.random.default_rng(0), True)
    assert check_chain(good, asked) == []
    told = good.replace("tissue like the example. </think>", "low-grade dysplasia. </think>")
    assert told != good and [problem.code for problem in check_chain(told, asked)] == ["names-class"]


def test_every_code_is_listed():
    assert len(set(NAMES)) == len(NAMES) and BLOCKING < set(NAMES)


def drawn(seed: int) -> tuple[dict[str, np.ndarray], frozenset[str], dict[str, dict[str, float]], np.random.Generator]:
    """Random masks of a few concepts, what is absent, and facts over the ranges that real ones have."""
    rng = np.random.default_rng(seed)
    keys = {DIAGNOSES[int(rng.integers(6))], *rng.choice(["fat", "stroma", "lymphocytes", "tumour_nest"], 2)}
    masks = {}
    for key in sorted(keys):
        masks[key] = np.zeros((24, 24), bool)
        for _ in range(int(rng.integers(1, 10))):
            size, (y, x) = int(rng.integers(2, 12)), rng.integers(0, 14, 2)
            masks[key][y : y + size, x : x + size] = True
    ranges = {"darker": (-0.15, 0.3), "nuclei": (0.1, 0.7), "solidity": (0.7, 1.0), "lumen": (0.0, 0.1)}
    facts = {key: {name: float(rng.uniform(*edges)) for name, edges in ranges.items()} for key in masks}
    return masks, frozenset(CONCEPTS) - keys - {"gland", "tumour"}, facts, rng


@given(st.integers(0, 100_000))
@settings(max_examples=80, deadline=None)
def test_the_template_passes_over_random_masks(seed):
    masks, absent, facts, rng = drawn(seed)
    for _ in range(3):
        episode = sample_episode(masks, absent, facts, rng)
        known = truth_from(masks, episode.targets, episode.concept, episode.kind, absent, facts=facts)
        assert check_chain(episode.answer, known) == [], episode


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_a_template_of_another_place_does_not_pass(seed):
    rng = np.random.default_rng(seed)
    mask = np.roll(square(), tuple(rng.choice([0, 60], 2)), (0, 1))
    text = chain(observation(mask, "low_grade", FACTS), "Found in that area: low-grade dysplasia <SEG>.")
    assert check_chain(text, truth(mask)) == []
    assert {problem.code for problem in check_chain(text, truth(mask[::-1, ::-1]))} == {"location"}


@pytest.mark.real
def test_the_template_passes_on_real_pictures():
    folder = data_folder() / "ebhi-seg"
    if not folder.is_dir():
        pytest.skip("SLIDEREASON_DATASETS holds no ebhi-seg")
    rng = np.random.default_rng(0)
    for number, scene in enumerate(read_ebhi(folder)):
        if number % 60 == 0:
            episode = sample_episode(scene.masks, scene.absent, with_facts(scene).facts, rng)
            known = truth_from(
                scene.masks, episode.targets, episode.concept, episode.kind, scene.absent, scene.image, scene.mpp
            )
            assert check_chain(episode.answer, known) == [], (scene.id, episode)


# What the checks stand on


@given(st.floats(-0.4, 0.5), st.floats(0, 1), st.floats(0.4, 1), st.floats(0, 0.3))
def test_words_are_the_templates(darker, nuclei, solidity, lumen):
    facts = {"darker": darker, "nuclei": nuclei, "solidity": solidity, "lumen": lumen}
    if darker in (0.05, 0.16):
        return
    said = observation(UPPER_LEFT, "low_grade", facts)
    words = {fact: word_for(fact, value) for fact, value in facts.items()}
    assert f", {words['darker']}, with {words['nuclei']} nuclei, " in said
    assert f"{words['solidity']} edges and {words['lumen']} lumens" in said
    assert f" {word_for('piece_share', UPPER_LEFT.mean())} gland" in said


def test_no_word_contradicts_a_value_that_the_template_says_it_of():
    for bands in BANDS.values():
        for lower, band in zip((None, *bands), bands, strict=False):
            assert band.least <= (lower.high if lower else -np.inf) and band.most >= min(band.high, 10) - 1e-9


def test_the_longest_name_counts():
    def keys(text: str) -> list[str | None]:
        return [mention.key for mention in mentions(text)]

    assert keys("carcinoma in situ beside carcinoma") == ["high_grade", "tumour"]
    assert keys("Low grade dysplasia, normal glands and tumors") == ["low_grade", "normal_gland", "tumour"]
    assert keys("a fatty polypoid thing") == []
    assert keys("rhabdomyosarcoma") == [None]


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("No adenocarcinoma is seen", True), ("This is not consistent with adenocarcinoma", True),
        ("adenocarcinoma is not seen", True), ("rather than adenocarcinoma", True), ("no sign of adenocarcinoma", True),
        ("This fits adenocarcinoma", False), ("without open lumens this fits adenocarcinoma", False),
        ("no lumens, adenocarcinoma", False), ("not pale, but adenocarcinoma", False),
    ],
)  # fmt: skip
def test_negations(text, denied):
    (mention,) = mentions(text)
    assert is_denied(text, mention) == denied


def test_sentences_end_at_full_stops_and_tags_not_at_decimal_points():
    assert sentences("<think> One is 0.5 wide. Two; three </think> Four.") == [
        "One is 0.5 wide.", "Two;", "three .", "Four.",
    ]  # fmt: skip


def test_single_nuclei_are_counted_and_sized():
    nuclei = np.zeros((100, 100), bool)
    for x, y, radius in ((20, 20, 6), (60, 20, 6), (20, 60, 6), (60, 60, 4)):
        nuclei |= disc(100, x, y, radius)
    sizes = nucleus_diameters(nuclei)
    assert sorted(sizes[sizes > 0].round()) == pytest.approx([8, 12, 12, 12], abs=1)
    image = np.where(nuclei[..., None], PURPLE, PINK).astype(np.uint8)
    left = np.zeros((100, 100), bool)
    left[:, :40] = True
    facts = more_facts(image, left, mpp=0.5)
    assert facts["nuclei_count"] == 2 and facts["diameter_px"] == pytest.approx(12, abs=2)
    assert facts["diameter_um"] == pytest.approx(facts["diameter_px"] / 2, abs=1e-3)
    assert facts["nuclei_per_mm2"] == pytest.approx(2 / (4000 * 0.25e-6), rel=1e-3)


def test_a_gland_is_described_by_what_was_painted():
    image, mask = gland_picture()
    seen = see("low_grade", mask, image, mpp=0.5)
    assert (seen.where, seen.colour, seen.colour_around) == ("upper left", "dark purple", "pink")
    assert seen.facts["lumen_count"] == 1 and seen.facts["lumen"] == pytest.approx((8 / 20) ** 2, rel=0.15)
    told = dict(measurements(seen))
    assert told["number of pieces"] == "1" and told["location"] == "upper left, 14% of the picture"
    assert told["lumens"].startswith("open") and told["tone"].startswith("much darker than around")
    known = truth_from({"low_grade": mask, "gland": mask}, (), "polyp", "absent", frozenset(), image)
    text = describe(known, "colon", "H&E", 0.5)
    assert text.startswith("Picture: colon, H&E, 0.5 µm per pixel.\nAlso there: low-grade dysplasia\n")
    assert text.endswith("What is asked for is not in the picture: polyp tissue.")
    assert known_in({"low_grade": mask}, OTHERS)[0].keys() >= {"low_grade", "gland"}
