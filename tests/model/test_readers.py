"""Readers, on files written in the sets' own formats and, where it is at hand, on the real data."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from model.data.concepts import CONCEPTS, DIAGNOSES
from model.data.readers import (
    EBHI_FOLDERS,
    ebhi_patient,
    read_bcss,
    read_camelyon,
    read_ebhi,
    read_glas,
    read_monusac,
    read_monuseg,
    read_tnbc,
    read_wsss4luad,
    trainable,
)
from model.data.splits import split_by_patient


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("GT2012329-1-400-016", "2012329"),
        ("GTGT2012329-1-400-016", "2012329"),
        ("GTxc2012888-2-400-001", "2012888"),
        ("GTDC2102643-1-400-001", "2102643"),
        ("2102643-1-400-001", "2102643"),
    ],
)
def test_the_patient_is_the_number_whatever_letters_stand_before(name, patient):
    assert ebhi_patient(name) == patient


def test_a_name_without_a_number_is_refused():
    with pytest.raises(ValueError, match="accepted"):
        ebhi_patient("control")


def write_pair(folder: Path, stem: str, mask: np.ndarray, suffix: str = ".jpg") -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / "images" / f"{stem}{suffix}"), rng.integers(90, 220, (*mask.shape, 3), np.uint8))
    cv2.imwrite(str(folder / "masks" / f"{stem}.png"), mask)


def half(size: int = 32, value: int = 255) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[:, : size // 2] = value
    return mask


def test_ebhi_marks_only_what_is_certain(tmp_path):
    for name in ("Adenocarcinoma", "Polyp"):
        for kind in ("images", "masks"):
            (tmp_path / kind / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / name / "GTxc2010001-1-400-001.jpg"), np.zeros((32, 32, 3), np.uint8))
        cv2.imwrite(str(tmp_path / "masks" / name / "GTxc2010001-1-400-001.png"), half())
    cancer, polyp = sorted(read_ebhi(tmp_path, facts=True), key=lambda s: s.id)
    assert set(cancer.masks) == {"malignant_gland", "gland", "tumour"}
    assert cancer.absent == set(DIAGNOSES) - {"malignant_gland"}
    assert set(polyp.masks) == {"polyp", "gland"}
    assert polyp.absent == set(DIAGNOSES) - {"polyp"} | {"tumour", "tumour_nest"}
    assert polyp.patient == cancer.patient == "2010001"
    assert polyp.masks["gland"].dtype == bool and polyp.masks["gland"].mean() == 0.5
    assert polyp.facts["polyp"]["share"] == 0.5 and trainable(polyp)


def test_camelyon_blocks_of_ten_are_one_patient_and_empty_masks_are_absences(tmp_path):
    write_pair(tmp_path, "10670", half())
    write_pair(tmp_path, "10679", half(value=0))
    write_pair(tmp_path, "10680", half())
    first, empty, other = read_camelyon(tmp_path)
    assert first.patient == empty.patient == "1067" != other.patient
    assert set(first.masks) == {"tumour_nest", "tumour"} and "malignant_gland" not in first.absent
    assert not empty.masks and {"tumour_nest", "tumour", "malignant_gland"} <= empty.absent
    assert "polyp" in first.absent and trainable(first)


def write_slide(folder: Path, stem: str, width: int = 256, height: int = 192) -> None:
    image = np.full((height, width, 3), 200, np.uint8)
    image[:, : width // 2] = (120, 60, 140)
    options = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER", "tile": (64, 64), "photometric": "rgb"}
    with tifffile.TiffWriter(folder / f"{stem}.tif") as tiff:
        tiff.write(image, subifds=1, **options)
        tiff.write(image[::2, ::2], subfiletype=1, **options)
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    cv2.imwrite(str(folder / f"{stem}_mask.png"), mask)


def test_bcss_tiles_cover_the_slide_at_the_asked_scale(tmp_path):
    write_slide(tmp_path, "1008")
    write_slide(tmp_path, "1015")
    scenes = list(read_bcss(tmp_path, mpp=0.5, tile_px=64, stride_px=48))
    of_one = [s for s in scenes if s.patient == "1015"]
    assert {s.id.split("/")[1] for s in of_one} == {f"{x}_{y}" for x in (0, 48, 64) for y in (0, 32)}
    for scene in of_one:
        x = int(scene.id.split("/")[1].split("_")[0])
        expected = np.arange(x, x + 64) < 64
        mask = scene.masks.get("tumour", np.zeros((64, 64), bool))
        assert scene.image.shape == (64, 64, 3) and np.array_equal(mask[10], expected)
    assert all(trainable(s) == (s.patient == "1015") for s in scenes)


def test_bcss_refuses_tiles_larger_than_the_slide(tmp_path):
    write_slide(tmp_path, "1015")
    with pytest.raises(ValueError, match="tile_px"):
        next(read_bcss(tmp_path, mpp=1.0, tile_px=512))


def test_glas_instances_become_glands_and_grades_decide_tumour(tmp_path):
    index = np.zeros((32, 32), np.uint8)
    index[:8], index[20:] = 1, 2
    write_pair(tmp_path, "train_10", index)
    write_pair(tmp_path, "testA_2", index)
    (tmp_path / "Grade.csv").write_text(
        "name,patient ID,grade (GlaS),grade (x)\ntrain_10,3, benign, adenomatous\ntestA_2,4,malignant,poor\n"
    )
    scenes = {s.id: s for s in read_glas(tmp_path)}
    assert set(scenes["train_10"].masks) == {"gland"} and "malignant_gland" in scenes["train_10"].absent
    assert set(scenes["testA_2"].masks) == {"gland", "malignant_gland", "tumour"}
    assert scenes["testA_2"].patient == "4" and scenes["testA_2"].masks["gland"].mean() == pytest.approx(20 / 32)
    assert not any(map(trainable, scenes.values()))


def test_glas_leaves_out_pictures_that_carry_the_mask_of_another(tmp_path):
    write_pair(tmp_path, "train_1", half())
    (tmp_path / "Grade.csv").write_text("name,patient ID,a,b\ntrain_1,3,benign,adenomatous\n")
    assert list(read_glas(tmp_path)) == []
    assert len(list(read_glas(tmp_path, skip=frozenset()))) == 1


def test_a_broken_picture_is_named(tmp_path):
    write_pair(tmp_path, "10670", half())
    (tmp_path / "images" / "10670.jpg").write_bytes(b"no jpeg")
    with pytest.raises(ValueError, match="10670.jpg"):
        next(read_camelyon(tmp_path))


@pytest.mark.real
def test_ebhi_as_it_is(shared_data):
    scenes = list(read_ebhi(shared_data / "ebhi-seg"))
    assert len(scenes) == 1802 and len({s.id for s in scenes}) == 1802
    assert all(s.image.shape[:2] == s.masks["gland"].shape == (224, 224) for s in scenes)
    for name, part in split_by_patient(scenes).items():
        assert {key for s in part for key in s.masks} >= set(EBHI_FOLDERS.values()), name


@pytest.mark.real
@pytest.mark.parametrize(
    ("reader", "folder", "count", "may_train"),
    [
        (read_camelyon, "camelyon", 40, True),
        (read_glas, "glas", 90, False),
        (read_wsss4luad, "wsss4luad", 31, False),
        (read_monuseg, "monuseg", 30, False),
        (read_monusac, "monusac", 69, False),
        (read_tnbc, "tnbc-nuclei", 43, False),
    ],
)
def test_the_other_sets_as_they_are(shared_data, reader, folder, count, may_train):
    scenes = list(reader(shared_data / folder))
    assert len(scenes) == count and {trainable(s) for s in scenes} == {may_train}
    for scene in scenes:
        assert all(m.shape == scene.image.shape[:2] and m.any() for m in scene.masks.values())
        assert not scene.masks.keys() & scene.absent and scene.absent <= CONCEPTS.keys()


@pytest.mark.real
def test_bcss_as_it_is(shared_data):
    scenes = list(read_bcss(shared_data / "slides" / "bcss", mpp=1.0, tile_px=512))
    assert {s.patient for s in scenes if trainable(s)} == {"1015"}
    share = np.mean([s.masks["tumour"].mean() if "tumour" in s.masks else 0 for s in scenes if s.patient == "1008"])
    assert 0.3 < share < 0.7
