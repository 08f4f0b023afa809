"""The synthetic slide: what viewers read, what its truth says, the same bytes from the same seed."""

import numpy as np
import openslide
import pytest
import tiffslide

from model.data.synthetic import PARENTS
from model.data.synthetic_slide import read_truth, write_synthetic_slide
from model.data.synthetic_style import LEAVES

WIDTH_PX, HEIGHT_PX, MPP = 2048, 1536, 2.0
"""The demonstration slide's section at a quarter of its resolution."""


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_synthetic_slide(tmp_path_factory.mktemp("slide") / "one.tif", 3, WIDTH_PX, HEIGHT_PX, MPP)


@pytest.fixture(scope="module")
def picture(slide):
    with openslide.OpenSlide(slide.path) as opened:
        return np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))


def test_same_seed_same_bytes(slide, tmp_path):
    again = write_synthetic_slide(tmp_path / "again.tif", 3, WIDTH_PX, HEIGHT_PX, MPP)
    assert again.path.read_bytes() == slide.path.read_bytes()
    assert again.truth_path.read_bytes() == slide.truth_path.read_bytes()
    other = write_synthetic_slide(tmp_path / "other.tif", 4, WIDTH_PX, HEIGHT_PX, MPP)
    assert other.path.read_bytes() != slide.path.read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"again.tif", "again.npz", "other.tif", "other.npz"}


def test_openslide_and_tiffslide_agree(slide, picture):
    with openslide.OpenSlide(slide.path) as one, tiffslide.TiffSlide(slide.path) as two:
        assert one.dimensions == two.dimensions == (WIDTH_PX, HEIGHT_PX)
        assert one.level_dimensions == two.level_dimensions == ((2048, 1536), (1024, 768), (512, 384))
        assert float(one.properties["openslide.mpp-x"]) == pytest.approx(MPP)
        assert float(one.properties["openslide.mpp-y"]) == pytest.approx(MPP)
        assert two.properties["tiffslide.mpp-x"] == pytest.approx(MPP)
        assert np.array_equal(np.asarray(two.read_region((500, 400), 0, (300, 200))), picture[400:600, 500:800])
        assert one.properties["openslide.level[0].tile-width"] == "256"


def test_levels_show_the_same_tissue(slide, picture):
    with openslide.OpenSlide(slide.path) as opened:
        half = np.asarray(opened.read_region((0, 0), 1, opened.level_dimensions[1]).convert("RGB")).astype(float)
    mean = picture.reshape(HEIGHT_PX // 2, 2, WIDTH_PX // 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(mean - half).mean() < 4


def test_truth_covers_every_concept_at_one_um(slide):
    for concept in (*LEAVES, *PARENTS):
        mask = slide.mask(concept)
        assert mask.shape == (3072, 4096) and mask.dtype == bool
        assert mask.mean() > 0.003, concept
    assert sum(slide.mask(leaf).astype(int) for leaf in LEAVES).max() == 1
    for parent, leaves in PARENTS.items():
        assert np.array_equal(slide.mask(parent), np.logical_or(*(slide.mask(leaf) for leaf in leaves)))
    with pytest.raises(KeyError):
        slide.mask("amyloid")


def test_truth_matches_the_pixels(slide, picture):
    masks = {leaf: slide.mask(leaf)[1::2, 1::2] for leaf in LEAVES}
    glass = ~np.logical_or.reduce(list(masks.values()))
    grey = picture.mean(axis=-1)
    assert grey[glass].mean() > 225
    assert glass[0].all() and glass[-1].all() and glass[:, 0].all() and glass[:, -1].all()
    assert 0.15 < glass.mean() < 0.5
    for dark, pale in (("lymphocytes", "stroma"), ("tumour_nest", "necrosis"), ("malignant_gland", "normal_gland")):
        assert grey[masks[dark]].mean() < grey[masks[pale]].mean() - 15, dark
    assert grey[masks["fat"]].mean() > grey[masks["stroma"]].mean() + 20


def test_no_seam_between_strips(picture):
    grey = picture.mean(axis=-1)
    steps = np.abs(np.diff(grey, axis=0))[:, 300:-300].mean(axis=1)
    # Rows 511|512 and 1023|1024 were rendered apart; JPEG blocks end there too, as they do at 503|504.
    for row in (511, 1023):
        usual = steps[[row - 16, row - 8, row + 8, row + 16]].mean()
        assert steps[row] < 1.15 * usual


def test_truth_is_read_back(slide):
    for path in (slide.path, slide.truth_path):
        truth = read_truth(path)
        assert truth.path == slide.path and truth.seed == 3 and truth.mpp == MPP
        assert (truth.width_px, truth.height_px) == (WIDTH_PX, HEIGHT_PX)
        assert np.array_equal(truth.mask("tumour_nest"), slide.mask("tumour_nest"))


def test_any_size_will_do(tmp_path):
    slide = write_synthetic_slide(tmp_path / "odd.tif", 1, 1101, 777, 1.3)
    with openslide.OpenSlide(slide.path) as opened:
        assert opened.level_dimensions == ((1101, 777), (550, 388), (275, 194))[: opened.level_count]
        assert opened.level_count >= 2
    assert slide.truth_shape == (1010, 1431)


@pytest.mark.parametrize("size", [(300, 900, 0.5), (900, 300, 0.5), (900, 900, 0.01)])
def test_what_cannot_be_drawn_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match="synthetic slide"):
        write_synthetic_slide(tmp_path / "no.tif", 0, *size)
    assert not list(tmp_path.iterdir())
