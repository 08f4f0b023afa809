"""Readers of sets of pictures, on miniature copies of the layouts in which they are published."""

import numpy as np
import pytest

from model.data.crag import read_crag
from model.data.digestpath import digestpath_patient, read_digestpath
from model.data.glas_official import read_glas_official
from model.data.layout import LayoutError
from model.data.readers import trainable
from model.data.sample import magnification_of
from model.data.sources import side_of
from model.data.wsss4luad_official import read_wsss4luad_official
from tests.model.published_sets import (
    boxes,
    picture,
    save,
    write_crag,
    write_digestpath,
    write_glas,
    write_wsss4luad,
)


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    return boxes(20, 30, (x0, y0, x1, y1, 1)) > 0


# CRAG


def test_crag_glands_are_the_instances_and_the_published_side_is_kept(tmp_path):
    train, valid = read_crag(write_crag(tmp_path))
    glands = box(2, 3, 10, 12) | box(15, 5, 25, 18)
    assert (train.masks["gland"] == glands).all() and (valid.masks["gland"] == glands[::-1]).all()
    assert (train.image == picture(seed=1)).all()
    assert set(train.masks) == {"gland"} and train.absent == frozenset()
    assert (train.mpp, magnification_of(train.mpp), train.organ, train.licence) == (0.55, 20, "colon", "research-only")
    assert (side_of(train), side_of(valid)) == ("train", "test")
    assert {side_of(train, seed) for seed in range(20)} == {"train"}
    assert not trainable(train)


def test_crag_names_the_annotation_that_is_missing(tmp_path):
    write_crag(tmp_path)
    (tmp_path / "train" / "Annotation" / "train_1.png").unlink()
    with pytest.raises(LayoutError, match=r"Annotation.train_1.png: is missing; accepted: .*instance map"):
        list(read_crag(tmp_path))


def test_crag_refuses_an_annotation_of_another_size(tmp_path):
    write_crag(tmp_path)
    save(tmp_path / "train" / "Annotation" / "train_1.png", boxes(21, 30))
    with pytest.raises(LayoutError, match=r"train_1.png: is 30 × 21 px, its picture 30 × 20 px"):
        list(read_crag(tmp_path))


def test_crag_refuses_colours_where_instances_are_due(tmp_path):
    write_crag(tmp_path)
    save(tmp_path / "train" / "Annotation" / "train_1.png", picture(seed=3))
    with pytest.raises(LayoutError, match="has 3 channels where one is due"):
        list(read_crag(tmp_path))


def test_crag_refuses_a_matlab_file_that_is_none(tmp_path):
    write_crag(tmp_path)
    (tmp_path / "valid" / "Annotation" / "valid_1.mat").write_bytes(b"nothing of the kind")
    with pytest.raises(LayoutError, match="valid_1.mat: is not a readable MATLAB file"):
        list(read_crag(tmp_path))


# DigestPath


def test_digestpath_lesions_survive_jpeg_and_negatives_hold_none(tmp_path):
    negative, first, second = read_digestpath(write_digestpath(tmp_path))
    lesion = box(8, 8, 24, 16)
    assert (first.masks["tumour"] == lesion).all() and set(first.masks) == {"tumour"}
    assert first.absent == frozenset() and not negative.masks
    assert negative.absent == {"tumour", "tumour_nest", "malignant_gland", "high_grade"}
    assert first.patient == second.patient == "2018-00530" and negative.patient == "2018-00641"
    assert first.id.startswith("pos/2018-00530A") and negative.id.startswith("neg/")
    assert (first.mpp, magnification_of(first.mpp), first.licence) == (0.475, 20, "research-only")
    assert side_of(first, 5) == side_of(second, 5)


@pytest.mark.parametrize(
    ("stem", "patient"),
    [
        ("2018-00530B_2019-05-07 23_56_22-lv1-1-2-3-4", "2018-00530"),
        ("18-09926A2_x", "18-09926"),
        ("D201800360_2019", "D201800360"),
        ("slide", "slide"),
    ],
)
def test_digestpath_blocks_of_one_case_are_one_patient(stem, patient):
    assert digestpath_patient(stem) == patient


def test_digestpath_names_the_mask_that_is_missing(tmp_path):
    write_digestpath(tmp_path)
    next((tmp_path / "tissue-train-pos-v1").glob("*A_*_mask.jpg")).unlink()
    with pytest.raises(LayoutError, match=r"2018-00530A.*_mask.jpg: is missing; accepted: tissue-train-pos"):
        list(read_digestpath(tmp_path))


def test_digestpath_refuses_a_positive_without_lesion_and_a_folder_that_is_neither(tmp_path):
    write_digestpath(tmp_path)
    save(next((tmp_path / "tissue-train-pos-v1").glob("*A_*_mask.jpg")), boxes(20, 30))
    with pytest.raises(LayoutError, match="is empty, yet its picture positive"):
        list(read_digestpath(tmp_path))
    save(tmp_path / "other" / "z.jpg", picture())
    with pytest.raises(LayoutError, match="'other', which is neither pos nor neg"):
        list(read_digestpath(tmp_path / "other"))


# GlaS


def test_glas_takes_patient_and_grade_from_the_table(tmp_path):
    benign, malignant = read_glas_official(write_glas(tmp_path))
    glands = box(2, 3, 10, 12) | box(11, 0, 30, 4)
    assert (benign.id, benign.patient, malignant.id, malignant.patient) == ("testA_1", "5", "train_1", "11")
    assert set(benign.masks) == {"gland"} and benign.absent == {"malignant_gland", "tumour", "tumour_nest"}
    assert set(malignant.masks) == {"gland", "malignant_gland", "tumour"} and malignant.absent == frozenset()
    assert (benign.masks["gland"] == glands).all() and (malignant.masks["tumour"] == glands).all()
    assert (benign.image == picture(seed=17)).all()
    assert (benign.mpp, magnification_of(benign.mpp), benign.source) == (0.62, 20, "glas")


def test_glas_only_tests_unless_it_is_told_to_train_and_then_patients_stay_together(tmp_path):
    benign, malignant = read_glas_official(write_glas(tmp_path))
    assert side_of(benign) == side_of(malignant) == "test"
    sides = {side_of(benign, seed, frozenset({"glas"})) for seed in range(60)}
    assert sides == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("patient ID", "case", "has no column 'patient ID'"),
        (" malignant", " dubious", "line 3: .* names no patient and grade"),
        ("train_1,", "train_2,", "has no row of train_1"),
    ],
)
def test_glas_names_what_is_wrong_with_its_table(tmp_path, old, new, problem):
    table = write_glas(tmp_path) / "Grade.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(LayoutError, match=rf"Grade.csv: {problem}"):
        list(read_glas_official(tmp_path))


def test_glas_names_the_table_that_is_missing(tmp_path):
    (write_glas(tmp_path) / "Grade.csv").unlink()
    with pytest.raises(LayoutError, match="Grade.csv: is not readable"):
        list(read_glas_official(tmp_path))


# WSSS4LUAD


def test_wsss4luad_training_says_only_what_is_not_there(tmp_path):
    train, test = read_wsss4luad_official(write_wsss4luad(tmp_path))
    assert not train.masks and train.absent == {"stroma"} and train.patient == "1031280"
    assert (train.id, test.id) == ("training/1031280-2300-27920-[1 0 1]", "testing/07")
    assert side_of(train) == side_of(test) == "test"


def test_wsss4luad_masks_are_palette_indices_without_the_glass(tmp_path):
    _, test = read_wsss4luad_official(write_wsss4luad(tmp_path))
    glass = box(5, 0, 15, 4)
    assert (test.masks["tumour"] == (box(0, 0, 10, 20) & ~glass)).all()
    assert (test.masks["stroma"] == (box(10, 0, 20, 20) & ~glass)).all()
    assert test.absent == frozenset() and (test.mpp, magnification_of(test.mpp)) == (1.0, 10)


def test_wsss4luad_a_class_that_only_glass_covers_is_absent(tmp_path):
    write_wsss4luad(tmp_path)
    save(tmp_path / "3.testing" / "background-mask" / "07.png", boxes(20, 30, (0, 0, 10, 20, 1)))
    _, test = read_wsss4luad_official(tmp_path)
    assert set(test.masks) == {"stroma"} and test.absent == {"tumour"}


def test_wsss4luad_names_what_does_not_fit(tmp_path):
    write_wsss4luad(tmp_path)
    save(tmp_path / "1.training" / "1031280-2300-27920.png", picture())
    with pytest.raises(LayoutError, match=r"1031280-2300-27920.png: names no slide and labels"):
        list(read_wsss4luad_official(tmp_path))
    (tmp_path / "1.training" / "1031280-2300-27920.png").unlink()
    (tmp_path / "3.testing" / "background-mask" / "07.png").unlink()
    with pytest.raises(LayoutError, match=r"background-mask.07.png: is missing"):
        list(read_wsss4luad_official(tmp_path))
    save(tmp_path / "3.testing" / "background-mask" / "07.png", boxes(20, 30))
    save(tmp_path / "3.testing" / "mask" / "07.png", boxes(20, 30, (0, 0, 3, 3, 9)))
    with pytest.raises(LayoutError, match=r"mask.07.png: holds the value 9; accepted: 0 to 3"):
        list(read_wsss4luad_official(tmp_path))


@pytest.mark.parametrize("read", [read_crag, read_digestpath, read_glas_official, read_wsss4luad_official])
def test_a_folder_without_pictures_or_none_at_all_says_what_is_accepted(tmp_path, read):
    with pytest.raises(LayoutError, match="holds no picture of this set; accepted: "):
        list(read(tmp_path))
    with pytest.raises(LayoutError, match="is not a folder; accepted: "):
        list(read(tmp_path / "nowhere"))


def test_a_broken_picture_is_named(tmp_path):
    write_crag(tmp_path)
    (tmp_path / "train" / "Images" / "train_1.png").write_bytes(b"no picture")
    with pytest.raises(LayoutError, match="train_1.png: is not a readable picture"):
        list(read_crag(tmp_path))
