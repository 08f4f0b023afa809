"""CAMELYON16 and 17 on miniature slides in their published layouts: tiles, masks, holes, scale, patients."""

import tracemalloc

import numpy as np
import pytest
import tifffile

from model.data.asap import Lesions, read_lesions
from model.data.camelyon_slides import SKIPPED16, read_camelyon16, read_camelyon17
from model.data.layout import LayoutError
from model.data.readers import trainable
from model.data.sample import magnification_of
from model.data.slide_tiles import MaskSlide, Slide, Tiling, plan_tiles
from model.data.sources import side_of
from tests.model.published_sets import polygon, slide_picture, square, write_asap, write_slide

AT_40X = Tiling(magnifications=(40,), tile_px=128)


def write_camelyon16(folder, mpp=0.25):
    """A normal slide, one with a metastasis that has a hole, and two of the test set."""
    write_slide(folder / "training" / "normal" / "normal_001.tif", mpp)
    write_slide(folder / "training" / "tumor" / "tumor_001.tif", mpp)
    outline = polygon("_0", *square(32, 32, 96, 96)), polygon("_2", *square(48, 48, 64, 80))
    write_asap(folder / "training" / "lesion_annotations" / "tumor_001.xml", *outline)
    for name in ("test_001", "test_002"):
        write_slide(folder / "testing" / "images" / f"{name}.tif", mpp)
    write_asap(folder / "testing" / "lesion_annotations" / "test_002.xml", polygon("Tumor", *square(0, 0, 128, 128)))
    (folder / "testing" / "reference.csv").write_text("test_001,Normal,None,None\ntest_002,Tumor,IDC,Macro\n")
    return folder


def by_id(scenes):
    return {scene.id: scene for scene in scenes}


# Polygons


def test_a_pixel_is_tumour_when_its_centre_lies_inside():
    lesions = Lesions((np.array(square(1.4, 0, 3.6, 2.0)),))
    assert lesions.window(0, 0, (3, 5), 1.0).tolist() == [
        [False, True, True, True, False], [False, True, True, True, False], [False] * 5,
    ]  # fmt: skip
    assert Lesions((np.array(square(1.6, 0, 3.4, 2.0)),)).window(0, 0, (1, 5), 1.0).tolist() == [
        [False, False, True, False, False]
    ]


def test_an_exclusion_is_a_hole_whatever_the_order_in_the_file(tmp_path):
    path = write_asap(tmp_path / "a.xml", polygon("_2", *square(2, 2, 4, 4)), polygon("_1", *square(0, 0, 6, 6)))
    window = read_lesions(path).window(0, 0, (6, 6), 1.0)
    assert window.sum() == 32 and not window[2:4, 2:4].any()


@pytest.mark.parametrize(("group", "inside"), [("_0", 1), ("_1", 1), ("Tumor", 1), ("None", 1), ("metastases", 1),
                                               ("_2", 0), ("Exclusion", 0), ("normal", 0)])  # fmt: skip
def test_groups_of_both_challenges_are_known(tmp_path, group, inside):
    lesions = read_lesions(write_asap(tmp_path / "a.xml", polygon(group, *square(0, 0, 2, 2))))
    assert (len(lesions.tumour), len(lesions.excluded)) == (inside, 1 - inside)


def test_dots_and_lines_enclose_nothing_and_order_and_commas_are_read(tmp_path):
    path = write_asap(
        tmp_path / "a.xml", polygon("Tumor", (1, 1), kind="Dot"), polygon("Tumor", (1, 1), (2, 2)),
        polygon("Tumor", *square(0, 0, 4, 4)),
    )  # fmt: skip
    text = path.read_text().replace('Order="1" X="4"', 'Order="9" X="4,5"')
    path.write_text(text)
    (only,) = read_lesions(path).tumour
    assert only.tolist() == [[0, 0], [4, 4], [0, 4], [4.5, 0]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<ASAP_Annotations", "is not readable XML"),
        ("<Slides/>", "begins with <Slides>"),
        ("<ASAP_Annotations><Annotation Type='Polygon' PartOfGroup='Fat'/></ASAP_Annotations>", "has the group 'Fat'"),
        (
            "<ASAP_Annotations><Annotation Name='7' Type='Polygon'><Coordinate X='1'/></Annotation></ASAP_Annotations>",
            "annotation '7' has a corner that is no number",
        ),
    ],
)
def test_an_annotation_that_is_none_is_named(tmp_path, text, problem):
    path = tmp_path / "tumor_001.xml"
    path.write_text(text)
    with pytest.raises(LayoutError, match=rf"tumor_001.xml: {problem}.*accepted"):
        read_lesions(path)


# Tiles


def test_tiles_are_the_slide_s_own_pixels_with_the_hole_left_out(tmp_path):
    scenes = by_id(read_camelyon16(write_camelyon16(tmp_path), AT_40X))
    tumour = scenes["tumor_001/40x_0_0"]
    expected = np.zeros((128, 128), bool)
    expected[32:96, 32:96] = True
    expected[48:80, 48:64] = False
    assert (tumour.masks["tumour_nest"] == expected).all() and (tumour.masks["tumour"] == expected).all()
    assert (tumour.image == slide_picture()[:128, :128]).all()
    assert tumour.absent == {"normal_gland", "polyp", "low_grade", "high_grade", "serrated"}
    beside = scenes["tumor_001/40x_128_0"]
    assert not beside.masks and {"tumour", "tumour_nest", "malignant_gland"} <= beside.absent
    assert (beside.image == slide_picture()[:128, 128:256]).all()


def test_only_tissue_is_tiled(tmp_path):
    ids = {scene.id for scene in read_camelyon16(write_camelyon16(tmp_path), AT_40X) if scene.patient == "normal_001"}
    assert ids == {f"normal_001/40x_{x}_{y}" for x in (0, 128) for y in (0, 128, 256, 384)}


def test_every_magnification_comes_from_the_slide_s_own_scale(tmp_path):
    tiling = Tiling(magnifications=(10, 20, 40), tile_px=64)
    scenes = [scene for scene in read_camelyon16(write_camelyon16(tmp_path), tiling) if scene.patient == "tumor_001"]
    assert {magnification_of(scene.mpp): scene.mpp for scene in scenes} == {10: 1.0, 20: 0.5, 40: 0.25}
    found = by_id(scenes)
    assert found["tumor_001/20x_0_0"].masks["tumour"].sum() == (64 * 64 - 32 * 16) / 4
    mask = found["tumor_001/10x_0_0"].masks["tumour"]
    assert mask.sum() == (64 * 64 - 32 * 16) / 16 and mask[8:24, 8:24].sum() == mask.sum()
    assert not mask[12:20, 12:16].any()


def test_a_slide_of_half_the_scale_gives_tiles_of_half_the_width(tmp_path):
    write_slide(tmp_path / "normal_001.tif", mpp=0.5)
    with Slide(tmp_path / "normal_001.tif") as slide:
        tiles = plan_tiles(slide, overview := slide.overview(), np.zeros_like(overview.tissue), 10, Tiling(tile_px=64))
    assert {(tile.x0, tile.y0) for tile in tiles} == {(x, y) for x in (0, 128) for y in (0, 128, 256, 384)}
    assert {tile.downsample for tile in tiles} == {2.0}


def test_a_slide_too_coarse_for_a_magnification_is_named(tmp_path):
    write_slide(tmp_path / "normal_001.tif", mpp=0.5)
    with pytest.raises(LayoutError, match=r"normal_001.tif: is 0.5 µm/px, too coarse for 40×; accepted: .* up to 20"):
        list(read_camelyon16(tmp_path, AT_40X))


def test_a_slide_without_scale_and_one_that_is_none_are_named(tmp_path):
    write_slide(tmp_path / "normal_001.tif", mpp=None)
    with pytest.raises(LayoutError, match="normal_001.tif: states no µm/px; accepted: a slide that OpenSlide opens"):
        list(read_camelyon16(tmp_path))
    (tmp_path / "normal_001.tif").write_bytes(b"no slide")
    with pytest.raises(LayoutError, match="normal_001.tif: does not open as a slide"):
        list(read_camelyon16(tmp_path))


def test_few_tiles_are_half_with_a_lesion_and_the_same_every_time(tmp_path):
    folder = write_camelyon16(tmp_path)
    write_asap(folder / "training" / "lesion_annotations" / "tumor_001.xml", polygon("_0", *square(0, 0, 256, 128)))
    tiling = Tiling(magnifications=(40,), tile_px=64, per_slide=6, seed=3)
    first, second = (
        [scene for scene in read_camelyon16(folder, tiling) if scene.patient == "tumor_001"] for _ in range(2)
    )
    assert [bool(scene.masks) for scene in first].count(True) == 3 and len(first) == 6
    assert [scene.id for scene in first] == [scene.id for scene in second]
    other = Tiling(magnifications=(40,), tile_px=64, per_slide=6, seed=4)
    assert [s.id for s in read_camelyon16(folder, other) if s.patient == "tumor_001"] != [s.id for s in first]


def test_too_few_lesions_are_made_up_for_by_other_tissue(tmp_path):
    tiling = Tiling(magnifications=(40,), tile_px=64, per_slide=30)
    scenes = [s for s in read_camelyon16(write_camelyon16(tmp_path), tiling) if s.patient == "tumor_001"]
    assert len(scenes) == 30 and sum(bool(scene.masks) for scene in scenes) == 4


def test_a_huge_slide_is_never_held(tmp_path, sparse_slide):
    (tmp_path / "normal_001.tif").symlink_to(sparse_slide)
    tracemalloc.start()
    try:
        first = next(read_camelyon16(tmp_path, Tiling(magnifications=(40,))))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert first.id == "normal_001/40x_32768_32768" and first.image.shape == (512, 512, 3)
    assert peak < 200e6  # the slide's pixels are 30 GB, its overview 28 MB


# Masks instead of polygons


def write_mask(path, values, levels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            part = np.ascontiguousarray(values[:: 2**level, :: 2**level])
            writer.write(part, tile=(64, 64), photometric="minisblack", subfiletype=int(level > 0), metadata=None)


@pytest.mark.parametrize(("tissue", "tumour"), [(0, 1), (0, 255), (1, 2)])
def test_a_mask_s_highest_value_is_the_tumour(tmp_path, tissue, tumour):
    write_slide(tmp_path / "images" / "tumor_001.tif")
    values = np.full((512, 512), tissue, np.uint8)
    values[32:96, 32:96] = tumour
    values[48:80, 48:64] = tissue
    write_mask(tmp_path / "masks" / "tumor_001_mask.tif", values, levels=3)
    scenes = by_id(read_camelyon16(tmp_path, Tiling(magnifications=(20, 40), tile_px=128)))
    assert (scenes["tumor_001/40x_0_0"].masks["tumour"] == (values[:128, :128] == tumour)).all()
    assert (scenes["tumor_001/20x_0_0"].masks["tumour"] == (values[:256:2, :256:2] == tumour)).all()
    assert not scenes["tumor_001/40x_128_128"].masks


def test_an_empty_mask_of_a_slide_with_tumour_is_refused(tmp_path):
    write_mask(tmp_path / "tumor_001_mask.tif", np.zeros((128, 128), np.uint8))
    with pytest.raises(LayoutError, match="tumor_001_mask.tif: is empty, yet its slide holds tumour"):
        MaskSlide(tmp_path / "tumor_001_mask.tif", 128)


def test_masks_and_backgrounds_of_the_later_release_are_no_slides(tmp_path):
    write_slide(tmp_path / "images" / "normal_001.tif")
    write_slide(tmp_path / "background_tissue" / "normal_001.tif")
    assert len(list(read_camelyon16(tmp_path, AT_40X))) == 8


# CAMELYON16


def test_camelyon16_slides_are_patients_and_tests_follow_the_reference(tmp_path):
    scenes = list(read_camelyon16(write_camelyon16(tmp_path), AT_40X))
    assert {scene.patient for scene in scenes} == {"normal_001", "tumor_001", "test_001", "test_002"}
    assert {scene.patient for scene in scenes if scene.masks} == {"tumor_001", "test_002"}
    assert {(s.source, s.organ, s.licence, s.mpp) for s in scenes} == {("camelyon16", "lymph node", "CC0-1.0", 0.25)}
    assert all(map(trainable, scenes))
    sides = {patient: {side_of(s) for s in scenes if s.patient == patient} for patient in ("normal_001", "test_002")}
    assert all(len(found) == 1 for found in sides.values())


def test_camelyon16_passes_over_slides_that_are_outlined_in_part(tmp_path):
    folder = write_camelyon16(tmp_path)
    assert "tumor_015" in SKIPPED16 and "test_114" in SKIPPED16
    (folder / "training" / "tumor" / "tumor_001.tif").rename(folder / "training" / "tumor" / "tumor_015.tif")
    assert "tumor_015" not in {scene.patient for scene in read_camelyon16(folder, AT_40X)}


def test_camelyon16_names_the_slide_whose_annotation_is_missing(tmp_path):
    folder = write_camelyon16(tmp_path)
    (folder / "training" / "lesion_annotations" / "tumor_001.xml").unlink()
    with pytest.raises(LayoutError, match="tumor_001.tif: holds tumour, but has neither annotation nor mask"):
        list(read_camelyon16(folder, AT_40X))


def test_camelyon16_does_not_guess_of_a_test_slide(tmp_path):
    folder = write_camelyon16(tmp_path)
    (folder / "testing" / "reference.csv").unlink()
    with pytest.raises(LayoutError, match=r"test_001.tif: has no annotation, and reference.csv has no row of it"):
        list(read_camelyon16(folder, AT_40X))
    (folder / "testing" / "reference.csv").write_text("test_001,maybe\n")
    with pytest.raises(LayoutError, match=r"reference.csv: line 1: 'test_001,maybe'"):
        list(read_camelyon16(folder, AT_40X))


# CAMELYON17


def write_camelyon17(folder):
    stages = ["patient,stage", "patient_004.zip,pN1"]
    for node, stage in enumerate(("negative", "macro", "micro", "itc")):
        write_slide(folder / "training" / "center_0" / f"patient_004_node_{node}.tif")
        stages.append(f"patient_004_node_{node}.tif,{stage}")
    write_slide(folder / "testing" / "patient_104_node_0.tif")
    for node in (1, 3):
        outlines = polygon("metastases", *square(0, 0, 64, 64)), polygon("normal", *square(0, 0, 32, 32))
        write_asap(folder / "lesion_annotations" / f"patient_004_node_{node}.xml", *outlines)
    (folder / "stage_labels.csv").write_text("\n".join(stages) + "\n")
    return folder


def test_camelyon17_takes_what_is_known_and_its_nodes_share_a_patient(tmp_path):
    scenes = list(read_camelyon17(write_camelyon17(tmp_path), AT_40X))
    assert {scene.id.split("/")[0] for scene in scenes} == {"patient_004_node_0", "patient_004_node_1"}
    assert {scene.patient for scene in scenes} == {"patient_004"} and {s.source for s in scenes} == {"camelyon17"}
    mask = by_id(scenes)["patient_004_node_1/40x_0_0"].masks["tumour"]
    assert mask.sum() == 64 * 64 - 32 * 32 and not mask[:32, :32].any()
    with_itc = {s.id.split("/")[0] for s in read_camelyon17(tmp_path, AT_40X, itc=True)}
    assert with_itc == {"patient_004_node_0", "patient_004_node_1", "patient_004_node_3"}


def test_camelyon17_names_labels_that_are_missing_or_wrong(tmp_path):
    table = write_camelyon17(tmp_path) / "stage_labels.csv"
    good = table.read_text()
    table.write_text(good.replace("negative", "clean"))
    with pytest.raises(LayoutError, match=r"stage_labels.csv: line 3: 'patient_004_node_0.tif,clean'; accepted: negat"):
        list(read_camelyon17(tmp_path, AT_40X))
    table.write_text(good.replace("patient,stage", "slide,label"))
    with pytest.raises(LayoutError, match=r"begins with 'slide,label'; accepted: the header patient,stage"):
        list(read_camelyon17(tmp_path, AT_40X))
    table.unlink()
    with pytest.raises(LayoutError, match=r"stage_labels.csv: is missing; accepted: patient_<nnn>_node_<n>.tif"):
        list(read_camelyon17(tmp_path, AT_40X))


@pytest.mark.real
def test_a_real_slide_is_tiled_at_its_own_scale(shared_data):
    with Slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        overview = slide.overview()
        tiles = plan_tiles(slide, overview, np.zeros_like(overview.tissue), 20, Tiling(tile_px=256))
        image = slide.window(tiles[0].x0, tiles[0].y0, 256, tiles[0].downsample)
    assert slide.mpp == pytest.approx(0.499) and tiles[0].downsample == pytest.approx(0.5 / 0.499)
    assert image.shape == (256, 256, 3) and 0 < len(tiles) <= (2220 // 256) * (2967 // 256)
    assert 0.2 < overview.tissue.mean() < 0.95
