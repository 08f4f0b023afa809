"""The bank of wordings: broad, unambiguous, parted cleanly, and never naming what it only implies."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data import unknown_things
from model.data.concepts import CONCEPTS, DIAGNOSES
from model.data.grammar import expand, expansions, stable_share
from model.data.queries import (
    ASKS,
    LOOKS,
    NAMES,
    carriers,
    fill,
    made_up_word,
    normalise_query,
    sample_exemplar_query,
    sample_query,
    sample_unknown_query,
    untidy,
    wordings,
    words_of,
)
from model.data.query_bank_carriers import CARRIERS

KINDS = ("names", "looks", "asks")


def plain(text: str) -> str:
    return normalise_query(text.lstrip("+"))


def all_wordings(concept: str, kind: str, split: str) -> set[str]:
    return {plain(text) for line in wordings(concept, split)[kind] for text in expansions(line)}


def test_grammar_expands_to_every_alternative():
    assert expansions("(a|b) c(d|)") == ["a cd", "a c", "b cd", "b c"]
    assert expansions("x(1(2|3)|)y") == ["x12y", "x13y", "xy"]
    rng = np.random.default_rng(0)
    assert {expand("(a|(b|c))", rng) for _ in range(80)} == {"a", "b", "c"}


@pytest.mark.parametrize("bad", ["(a|b", "a)b"])
def test_grammar_refuses_unbalanced_patterns(bad):
    with pytest.raises(ValueError, match="parenthesis"):
        expansions(bad)


def test_the_bank_is_broad():
    assert len(CARRIERS) >= 80
    for concept in CONCEPTS:
        assert len(all_wordings(concept, "names", "train")) >= 30
        implied = len(LOOKS[concept]) + len(ASKS[concept])
        assert implied >= (45 if concept in DIAGNOSES else 25), concept
    assert len(unknown_things.TRAIN) >= 400 and len(unknown_things.HELD_OUT) >= 30
    assert {"amyloid", "moon"} <= set(unknown_things.HELD_OUT)


def test_no_wording_means_two_concepts():
    owner: dict[str, str] = {}
    for concept in CONCEPTS:
        for bank in (NAMES, LOOKS, ASKS):
            for line in bank[concept]:
                for text in map(plain, expansions(line)):
                    assert owner.setdefault(text, concept) == concept, text


def test_implied_wordings_never_name_their_concept():
    for concept, description in CONCEPTS.items():
        if concept in ("gland", "tumour"):
            continue
        own = [plain(name) for name in (description.name, description.phrase, *description.synonyms)]
        for bank in (LOOKS, ASKS):
            for line in bank[concept]:
                for text in map(plain, expansions(line)):
                    assert not any(re.search(rf"\b{re.escape(name)}\b", text) for name in own), text


def test_held_out_wordings_are_not_in_training_but_their_words_are():
    for concept in CONCEPTS:
        for kind in KINDS:
            train, held = all_wordings(concept, kind, "train"), all_wordings(concept, kind, "heldout")
            assert not train & held
            known = words_of(" ".join(train | set(CARRIERS)))
            assert all(len(words_of(text) - known) <= 1 for text in held)
        lines = sum(len(wordings(concept, split)[kind]) for kind in KINDS for split in ("train", "heldout"))
        share = sum(len(wordings(concept, "heldout")[kind]) for kind in KINDS) / lines
        assert 0.05 <= share <= 0.25, (concept, share)
    assert 0.1 <= len(carriers("heldout")) / len(CARRIERS) <= 0.2
    assert not set(carriers("heldout")) & set(carriers("train"))


def test_unknown_things_are_no_taught_things_and_held_out_ones_never_train():
    taught = set().union(*(all_wordings(c, k, s) for c in CONCEPTS for k in KINDS for s in ("train", "heldout")))
    train = set(map(plain, unknown_things.TRAIN))
    held = set(map(plain, unknown_things.HELD_OUT))
    assert not train & taught and not held & taught and not train & held
    assert not set(unknown_things.ASKS_TRAIN) & set(unknown_things.ASKS_HELD_OUT)


def test_the_names_of_the_data_set_are_understood_in_training():
    for concept, name in {
        "low_grade": "Low-grade_IN", "high_grade": "High-grade_IN", "serrated": "Serrated_adenoma", "polyp": "Polyp",
        "normal_gland": "Normal", "malignant_gland": "Adenocarcinoma",
    }.items():  # fmt: skip
        assert plain(name) in all_wordings(concept, "names", "train")


def test_sampling_is_reproducible_and_varied():
    def draw(seed: int) -> list[tuple[str, str]]:
        rng = np.random.default_rng(seed)
        return [sample_query("polyp", rng) for _ in range(300)]

    assert draw(1) == draw(1)
    assert len({text for text, _ in draw(1)}) > 280


def test_implied_is_what_was_asked_for():
    rng = np.random.default_rng(2)
    assert {sample_query("fat", rng, implied=True)[1] for _ in range(20)} == {"implied"}
    assert {sample_query("fat", rng, implied=False)[1] for _ in range(20)} == {"named"}
    kinds = [sample_query("fat", rng)[1] for _ in range(600)]
    assert 0.3 < kinds.count("implied") / 600 < 0.5


def test_held_out_queries_cannot_come_up_in_training():
    rng = np.random.default_rng(3)
    things = [text for line in wordings("low_grade", "train")["names"] for text in expansions(line)]
    filled = {fill(text, thing) for line in carriers("train") for text in expansions(line) for thing in things}
    for _ in range(200):
        text, kind = sample_query("low_grade", rng, "heldout", implied=False, noise=0)
        assert kind == "named" and text not in filled


def test_splits_and_concepts_that_do_not_exist_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="heldout"):
        sample_query("fat", rng, split="test")
    with pytest.raises(ValueError, match="heldout"):
        sample_unknown_query(rng, split="val")
    with pytest.raises(KeyError):
        sample_query("unicorn", rng)


def test_verbs_agree_and_articles_do_not_double():
    assert fill("{exist} any {x}? outline {it}", "+crypts") == "are there any crypts? outline them"
    assert fill("where {is} the {x}", "polyp") == "where is the polyp"
    assert fill("outline the {x}", "the worst part") == "outline the worst part"
    assert fill("is there any {x}", "all tissue") == "is there all tissue"
    rng = np.random.default_rng(4)
    texts = [sample_query(c, rng, noise=0)[0] for c in CONCEPTS for _ in range(150)]
    texts += [sample_unknown_query(rng, noise=0) for _ in range(300)]
    for text in texts:
        assert not re.search(r"\b(the the|any any|the any|a the|the a|the all)\b|[{}|+()]|\s\s", text), text


def test_normalising_takes_out_what_means_nothing():
    assert normalise_query("  Low-grade_IN ") == "low grade in"
    assert normalise_query("TUMOR  nests") == "tumour nests" == normalise_query("tumour\nnests")
    assert normalise_query("tumors, tumorous") == "tumours, tumourous"


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing(text):
    assert normalise_query(normalise_query(text)) == normalise_query(text)


@given(st.integers(0, 3000))
def test_untidiness_keeps_a_question_readable(seed):
    rng = np.random.default_rng(seed)
    text = "where is the low-grade dysplasia in this tumour?"
    assert untidy(text, rng, 0) == text
    messy = untidy(text, rng, 1)
    assert messy.strip() and abs(len(messy) - len(text)) < 40


def test_made_up_words_are_new_each_time_and_no_words_we_teach():
    rng = np.random.default_rng(5)
    taught = words_of(" ".join(line for bank in (NAMES, LOOKS, ASKS) for lines in bank.values() for line in lines))
    made = [made_up_word(rng) for _ in range(2000)]
    assert len(set(made)) > 1700
    assert sum(word in taught for word in made) / len(made) < 0.01


def test_exemplar_queries_name_nothing():
    rng = np.random.default_rng(6)
    for split in ("train", "heldout"):
        for _ in range(100):
            text = plain(sample_exemplar_query(rng, split, noise=0))
            assert not any(re.search(rf"\b{plain(c.phrase)}\b", text) for c in CONCEPTS.values())


@given(st.text())
def test_stable_share_is_in_the_unit_interval(text):
    assert 0 <= stable_share(text) < 1
