"""No patient is ever on two sides, whatever else is in the set."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.data.scene import Scene
from model.data.splits import NAMES, split_by_patient, split_of_patient, split_of_scene

IMAGE = np.zeros((2, 2, 3), np.uint8)


def scene(source: str, patient: str, number: int = 0) -> Scene:
    return Scene(f"{patient}/{number}", source, patient, IMAGE, {}, frozenset(), None, "colon", "CC0-1.0")


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(0, 5))
def test_all_pictures_of_a_patient_are_on_one_side_and_none_is_lost(patients, seed):
    scenes = [scene("ebhi-seg", str(p), i) for i, p in enumerate(patients)]
    parts = split_by_patient(scenes, seed)
    sides = [{s.patient for s in parts[name]} for name in NAMES]
    assert sum(map(len, parts.values())) == len(scenes)
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


@given(st.text(min_size=1, max_size=12))
def test_a_patient_stays_where_it_is_when_others_join(patient):
    assert split_of_patient(patient) == split_of_patient(patient)
    assert split_of_scene(scene("camelyon", patient)) == split_of_patient(f"camelyon/{patient}")


def test_shares_are_as_asked():
    sides = [split_of_patient(str(i)) for i in range(4000)]
    shares = [sides.count(name) / len(sides) for name in NAMES]
    assert np.allclose(shares, [0.8, 0.1, 0.1], atol=0.02)
    assert {split_of_patient(str(i), ratios=(1, 0, 0)) for i in range(50)} == {"train"}


def test_another_seed_is_another_split():
    assert [split_of_patient(str(i), 1) for i in range(99)] != [split_of_patient(str(i), 2) for i in range(99)]


def test_evaluation_sets_and_the_kept_slide_are_always_test():
    assert all(split_of_scene(scene("glas", str(i))) == "test" for i in range(20))
    assert split_of_scene(scene("bcss", "1008")) == "test"


def test_this_split_is_the_one_the_shipped_weights_were_trained_with():
    assert split_of_patient("ebhi-seg/2012315") == "train"
    assert {p: split_of_patient(f"camelyon/{p}") for p in ("1007", "1067", "1068")} == {
        "1007": "train",
        "1067": "train",
        "1068": "val",
    }
