"""Concepts nest as they say, and what follows from children is worked out, never guessed."""

import numpy as np
import pytest

from model.data.concepts import CHILDREN, CONCEPTS, DIAGNOSES, known_in, most_specific

LEFT = np.arange(16).reshape(4, 4) % 4 < 2
TOP = np.arange(16).reshape(4, 4) < 8


def test_every_parent_is_a_concept_and_no_phrase_is_used_twice():
    assert {p for c in CONCEPTS.values() for p in c.parents} == set(CHILDREN) <= CONCEPTS.keys()
    assert len({c.phrase for c in CONCEPTS.values()}) == len(CONCEPTS)
    assert set(DIAGNOSES) == set(CHILDREN["gland"])


def test_a_parent_is_the_union_of_its_children_when_all_are_known():
    present, absent = known_in({"malignant_gland": LEFT, "tumour_nest": TOP}, frozenset())
    assert np.array_equal(present["tumour"], LEFT | TOP)
    assert "gland" not in present and "gland" not in absent


def test_a_parent_with_an_unknown_child_is_unknown():
    present, absent = known_in({"malignant_gland": LEFT}, frozenset())
    assert "tumour" not in present and "tumour" not in absent


def test_a_parent_is_absent_when_every_child_is():
    present, absent = known_in({}, frozenset(CHILDREN["tumour"]))
    assert "tumour" in absent and not present


def test_a_mask_given_for_a_parent_is_kept():
    present, _ = known_in({"tumour": TOP, "malignant_gland": LEFT, "tumour_nest": LEFT}, frozenset())
    assert present["tumour"] is TOP


def test_what_is_present_is_never_also_absent():
    present, absent = known_in({"fat": TOP}, frozenset({"fat", "necrosis"}))
    assert not present.keys() & absent and "necrosis" in absent


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"gland", "polyp"}, ["polyp"]),
        ({"gland", "tumour", "malignant_gland"}, ["malignant_gland"]),
        ({"gland", "fat"}, ["gland", "fat"]),
    ],
)
def test_most_specific_drops_parents_of_what_is_there(keys, expected):
    assert most_specific(keys) == expected
