"""Real slides: they open, say the truth about themselves, and hold what the plan wants."""

from pathlib import Path

import numpy as np
import pytest

from tests.worker.test_direct_tiff import assert_same_pixels
from worker.batches import read_tiles
from worker.direct_tiff import open_direct_tiff
from worker.errors import MppUnknown, SlideUnreadable
from worker.plan import block_of, plan_tiles
from worker.slide_process import inspect_slide
from worker.slide_readers import OpenSlideReader
from worker.slides import open_slide
from worker.tissue import find_tissue
from worker.types import JobSpec

CMU, CMU_DICOM = "CMU-1-Small-Region.svs", "cmu-1-small-region-dicom"
TCGA = "tcga-cr-7395-01a-01-ts1.svs"
SIZES = {
    CMU: (2220, 2967, 0.499),
    CMU_DICOM: (2220, 2967, 0.499),
    TCGA: (4443, 3567, None),
    "kidney-48-5.tif": (1493, 901, None),
    "patch-8-level.tif": (256, 256, None),
    "bcss/1008.tif": (3584, 2560, 0.25),
    "bcss/1015.tif": (4096, 2048, 0.25),
    "camelyon-dicom/multi_frame_jpeg_camelyon_challenge_image.dcm": (1152, 700, 28.969),
    "camelyon-dicom/multi_frame_jpeg2000_camelyon_challenge_image.dcm": (1696, 812, 28.969),
    "camelyon-dicom/multiframe_camelyon_challenge_image.dcm": (1152, 700, 28.969),
}


@pytest.fixture(scope="module")
def slides(shared_data: Path) -> Path:
    return shared_data / "slides"


def spec_of(**fields: object) -> JobSpec:
    return JobSpec("slide", "id", ("tumour",), **fields)


@pytest.mark.parametrize("name", SIZES)
def test_each_opens_and_is_read_to_its_last_tile(slides: Path, name: str):
    width, height, mpp = SIZES[name]
    with open_slide(slides / name) as slide:
        assert (slide.info.width_px0, slide.info.height_px0) == (width, height)
        assert slide.info.mpp_x == (pytest.approx(mpp) if mpp else None)
        assert max(slide.thumbnail(512).shape) <= 512
        native = mpp or 0.5
        spec = spec_of(mpp=2 * native, mpp_override=None if mpp else native)
        plan = plan_tiles(slide.info, spec, find_tissue(slide.thumbnail(2048)), 256, 1.0)
        assert plan.n_tiles > 0
        for key in plan.block_keys:
            for tile, pixels in read_tiles(slide, plan, block_of(plan, key).tiles):
                assert isinstance(pixels, np.ndarray), (tile, pixels)
                assert pixels.shape == (256, 256, 3)


def test_svs_and_dicom_hold_the_same_slide(slides: Path):
    with open_slide(slides / CMU) as svs, open_slide(slides / CMU_DICOM) as dicom:
        for frame in ((0, 0, 500, 500, 50, 50), (900, 1200, 640, 640, 40, 40), (1800, 2500, 600, 600, 30, 30)):
            difference = np.abs(svs.read_px0(*frame).astype(int) - dicom.read_px0(*frame))
            # packed twice, the grain differs; the tissue may not
            assert difference.mean() < 1.5, frame


def test_a_dicom_file_stands_for_its_series_and_never_shows_label_or_overview(slides: Path):
    for file in (slides / CMU_DICOM).glob("*.dcm"):
        with open_slide(file) as slide:
            assert slide.info.level_dimensions == ((2220, 2967),)


def test_a_folder_of_several_series_asks_for_one(slides: Path):
    with pytest.raises(SlideUnreadable, match="2 DICOM series"):
        open_slide(slides / "camelyon-dicom")


def test_a_slide_without_mpp_asks_for_it(slides: Path):
    with open_slide(slides / TCGA) as slide:
        assert (slide.info.mpp_x, slide.info.mpp_source) == (None, None)
        with pytest.raises(MppUnknown) as caught:
            plan_tiles(slide.info, spec_of(), None, 256, 1.0)
        assert caught.value.field == "mpp_override"
    with open_slide(slides / TCGA, mpp_override=0.25) as slide:
        assert plan_tiles(slide.info, spec_of(), None, 256, 1.0).width_px == 1111


def test_a_broken_slide_is_an_error(slides: Path):
    for read in (open_slide, inspect_slide):
        with pytest.raises(SlideUnreadable) as caught:
            read(slides / "broken.svs")
        assert str(slides) not in str(caught.value)


@pytest.mark.parametrize("name", [CMU, "bcss/1008.tif", "bcss/1015.tif", "patch-8-level.tif"])
def test_the_fast_path_gives_openslides_pixels(slides: Path, name: str):
    reader = OpenSlideReader(slides / name)
    direct = open_direct_tiff(slides / name, reader)
    try:
        assert all(direct.serves(level) for level in range(len(reader.level_dimensions)))
        assert_same_pixels(direct, reader, reads=25)
    finally:
        direct.close()
        reader.close()


def test_jpeg_2000_is_left_to_openslide(slides: Path):
    reader = OpenSlideReader(slides / TCGA)
    assert open_direct_tiff(slides / TCGA, reader) is None
    reader.close()


def test_overviews_keep_the_fat_between_the_nodes_and_drop_the_glass(slides: Path):
    with open_slide(slides / "camelyon-dicom/multi_frame_jpeg_camelyon_challenge_image.dcm") as slide:
        found = find_tissue(slide.thumbnail(2048))
    assert 0.3 < found.mean() < 0.45
    assert found[200, 150]  # a node
    assert found[400, 200]  # fat between two nodes
    assert found[620:, :400].mean() < 0.01  # glass


def test_pictures_of_tissue_are_looked_at_whole(shared_data: Path):
    files = sorted((shared_data / "ebhi-seg" / "images").rglob("*.jpg"))[::40]
    assert len(files) >= 10
    for file in files:
        with open_slide(file, mpp_override=0.5) as slide:
            plan = plan_tiles(slide.info, spec_of(), find_tissue(slide.thumbnail(2048)), 64, 1.0)
            assert plan.n_skipped <= 0.2 * plan.rows * plan.cols, file.name
            plan = plan_tiles(slide.info, spec_of(), find_tissue(slide.thumbnail(2048)), 256, 1.0)
            assert plan.n_skipped == 0, file.name
