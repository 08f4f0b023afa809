"""The overlay on disk: valid OME-Zarr 0.5, whole shards, attempts that publish once however often they are repeated."""

import hashlib
import json
import shutil
from pathlib import Path

import jsonschema
import ngff_zarr
import numpy as np
import ome_zarr_models.v05 as ngff
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.worker.overlay_job import blocks_of, discs, finish, make_block, make_info, make_plan, segment_blocks
from worker.attempts import attempt_folder, publish, read_records, read_summaries, write_records, write_summary
from worker.overlay import create_overlay, write_block, write_reference
from worker.pyramid import OVERLAY, halve_mean, has_shard, levels_of, open_level
from worker.types import JobSpec, TileRecord

QUERIES = ("Where is the <b>tumour</b>?", "Fat")
SPEC = JobSpec("slide", "slide", QUERIES, min_region_um2=50.0)
PLAN = make_plan(1300, 900)
PICTURES = [
    discs(1300, 900, (500, 500, 120), (1200, 80, 60), (30, 880, 25)),
    discs(1300, 900, (900, 512, 90)),
]


class FlatSlide:
    """A slide of one colour gradient; stands in for `worker.slides.Slide`, of which the overlay only reads frames."""

    def __init__(self):
        self.read = []

    def read_px0(self, x_px0, y_px0, width_px0, height_px0, out_width, out_height):
        self.read.append((x_px0, y_px0, width_px0, height_px0))
        image = np.zeros((out_height, out_width, 3), np.uint8)
        image[..., 0] = (np.arange(out_width) * 255 // out_width)[None]
        image[..., 1] = (np.arange(out_height) * 255 // out_height)[:, None]
        return image

    def thumbnail(self, max_px):
        return np.full((max_px // 2, max_px, 3), 7, np.uint8)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("job")
    segment_blocks(root, PLAN, SPEC, PICTURES)
    finish(root, PLAN, SPEC)
    publish(root, "finish", 1)
    return root


def digest(root: Path) -> dict[str, str]:
    """Hash of every file of a folder by its relative path."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_group_passes_the_ngff_models(job):
    image = ngff.Image.from_zarr(zarr.open_group(job / OVERLAY, mode="r"))
    assert [axis.name for axis in image.attributes.ome.multiscales[0].axes] == ["c", "y", "x"]
    assert image.attributes.ome.omero is not None
    labels = ngff.ImageLabel.from_zarr(zarr.open_group(job / OVERLAY / "labels/0", mode="r"))
    assert [entry.label_value for entry in labels.attributes.ome.image_label.properties] == [1, 2, 3]
    assert ngff.Labels.from_zarr(zarr.open_group(job / OVERLAY / "labels", mode="r")).attributes.ome.labels == [
        "0",
        "1",
    ]
    ngff.Image.from_zarr(zarr.open_group(job / OVERLAY / "probability/1", mode="r"))


def test_metadata_passes_the_published_schemas(job):
    folder = Path(ngff_zarr.__file__).parent / "spec" / "0.5" / "schemas"
    schemas = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.schema")}
    base = "https://ngff.openmicroscopy.org/0.5/schemas"
    resources = [(f"{base}/{name}.schema", DRAFT202012.create_resource(body)) for name, body in schemas.items()]
    registry = Registry().with_resources(resources)
    for group, name in (("", "image"), ("labels/0", "image"), ("labels/0", "label"), ("probability/1", "image")):
        attributes = json.loads((job / OVERLAY / group / "zarr.json").read_text())["attributes"]
        jsonschema.Draft202012Validator(schemas[f"strict_{name}"], registry=registry).validate(attributes)


def test_ome_zarr_reads_image_and_labels(job):
    nodes = {node.metadata.get("name"): node.data for node in Reader(parse_url(str(job / OVERLAY)))() if node.data}
    assert [level.shape for level in nodes["slide"]] == [(3, 900, 1300), (3, 450, 650), (3, 225, 325)]
    assert [level.shape for level in nodes[QUERIES[0]]] == [(900, 1300), (450, 650), (225, 325)]
    assert int(np.asarray(nodes[QUERIES[0]][0]).max()) == 3


def test_levels_scales_and_names_match(job):
    for name, leading in (("", 1), ("labels/0", 0), ("probability/1", 0)):
        attributes = dict(zarr.open_group(job / OVERLAY / name, mode="r").attrs)
        datasets = attributes["ome"]["multiscales"][0]["datasets"]
        assert len(datasets) == len(levels_of(PLAN)) == 3
        for level, dataset in zip(levels_of(PLAN), datasets, strict=True):
            array = open_level(job / OVERLAY, name, level.index)
            assert array.shape[leading:] == (level.height_px, level.width_px)
            assert array.metadata.dimension_names == ("c", "y", "x")[1 - leading :]
            scale, translation = dataset["coordinateTransformations"]
            assert scale["scale"][leading:] == [2.0**level.index] * 2
            assert translation["translation"][leading:] == [(2**level.index - 1) / 2] * 2


def test_labels_are_named_twice_for_vizarr(job):
    attributes = dict(zarr.open_group(job / OVERLAY / "labels", mode="r").attrs)
    assert attributes["labels"] == attributes["ome"]["labels"] == ["0", "1"]


def test_a_shard_is_the_block_and_empty_ones_are_not_written(job):
    array = open_level(job / OVERLAY, "probability/0", 0)
    assert array.shards == (512, 512) and array.chunks == (512, 512)
    for row in range(2):
        for col in range(3):
            written = PICTURES[1][512 * row : 512 * row + 512, 512 * col : 512 * col + 512].any()
            assert has_shard(job / OVERLAY, "probability/1", 0, row, col) == written


def test_the_published_probability_is_what_the_blocks_said(job):
    for query_index, picture in enumerate(PICTURES):
        found = open_level(job / OVERLAY, f"probability/{query_index}", 0)[:]
        assert np.array_equal(found, np.rint(picture * 255).astype(np.uint8))


def test_properties_carry_the_regions_ids(job):
    attributes = dict(zarr.open_group(job / OVERLAY / "labels" / "1", mode="r").attrs)
    (entry,) = attributes["ome"]["image-label"]["properties"]
    assert entry["label-value"] == 1 and entry["area_um2"] == float((PICTURES[1] > 0).sum())
    assert entry["confidence"] == pytest.approx(0.8, abs=0.002) and len(entry["region_id"]) == 36


def test_work_repeated_in_another_order_leaves_the_same_bytes(job, tmp_path):
    # A first worker dies in the middle of a block, and later of finish; its folders stay behind.
    segment_blocks(tmp_path, PLAN, SPEC, PICTURES, order=-1)
    dead = attempt_folder(tmp_path, "0_0", 99)
    write_block(tmp_path, dead, PLAN, make_block(PLAN, 0, 0), 0, np.full((512, 512), 255, np.uint8))
    finish(tmp_path, PLAN, SPEC)
    finish(tmp_path, PLAN, SPEC)
    publish(tmp_path, "finish", 1)
    assert digest(tmp_path / OVERLAY) == digest(job / OVERLAY)
    assert digest(tmp_path / "blocks") == digest(job / "blocks")


def test_an_attempt_is_published_once_and_may_be_published_again(tmp_path):
    folder = attempt_folder(tmp_path, "0_0", 7)
    write_summary(folder, "0_0", {"tiles": 3})
    assert list(read_summaries(tmp_path, PLAN)) == []
    publish(tmp_path, "0_0", 7)
    publish(tmp_path, "0_0", 7)
    assert list(read_summaries(tmp_path, PLAN)) == [("0_0", {"tiles": 3})]
    assert not folder.exists()


def test_a_publisher_that_died_half_way_is_finished_by_the_next(tmp_path):
    folder = attempt_folder(tmp_path, "0_1", 3)
    write_summary(folder, "0_1", {"tiles": 3})
    write_records(folder, "0_1", [TileRecord("0_0", 0, 0, 0, 256)])
    (tmp_path / "blocks/0_1").mkdir(parents=True)
    shutil.move(folder / "blocks/0_1/records.jsonl", tmp_path / "blocks/0_1/records.jsonl")
    publish(tmp_path, "0_1", 3)
    assert len(list(read_records(tmp_path, PLAN))) == len(list(read_summaries(tmp_path, PLAN))) == 1


def test_publishing_what_never_was_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to publish"):
        publish(tmp_path, "0_0", 1)


def test_an_attempt_of_the_same_token_starts_empty(tmp_path):
    (attempt_folder(tmp_path, "0_0", 1) / "half").write_text("written")
    assert list(attempt_folder(tmp_path, "0_0", 1).iterdir()) == []


def test_records_come_back_in_the_order_of_queries_and_tiles(tmp_path):
    records = [TileRecord(key, index, 0, 0, 256, shares={"0_0/1": 2.5}) for index in (1, 0) for key in ("10_2", "9_3")]
    folder = attempt_folder(tmp_path, "0_0", 1)
    write_records(folder, "0_0", records)
    publish(tmp_path, "0_0", 1)
    back = list(read_records(tmp_path, PLAN))
    assert [(record.query_index, record.key) for record in back] == [(0, "9_3"), (0, "10_2"), (1, "9_3"), (1, "10_2")]
    assert back[0].shares == {"0_0/1": 2.5} and back[0].owned


def test_a_block_publishes_shards_and_nothing_else_of_the_store(tmp_path):
    plan = make_plan(2100, 1100, block_px=1024)
    create_overlay(tmp_path / OVERLAY, plan, make_info(4200, 2200), QUERIES)
    folder = attempt_folder(tmp_path, "0_1", 1)
    probability = np.random.default_rng(0).integers(0, 255, (1024, 1024)).astype(np.uint8)
    write_block(tmp_path, folder, plan, blocks_of(plan)[1], 1, probability)
    assert sorted(digest(folder)) == [f"overlay.zarr/probability/1/{level}/c/0/1" for level in (0, 1)]
    publish(tmp_path, "0_1", 1)
    assert np.array_equal(open_level(tmp_path / OVERLAY, "probability/1", 1)[:512, 512:1024], halve_mean(probability))


def test_a_block_of_the_wrong_shape_is_refused(tmp_path):
    create_overlay(tmp_path / OVERLAY, PLAN, make_info(2600, 1800), QUERIES)
    with pytest.raises(ValueError, match="512"):
        write_block(tmp_path, tmp_path, PLAN, make_block(PLAN, 0, 0), 0, np.zeros((4, 4), np.uint8))


def test_the_reference_is_written_only_where_it_costs_little(tmp_path):
    plan = make_plan(9000, 2000, block_px=1024)
    slide = FlatSlide()
    create_overlay(tmp_path / OVERLAY, plan, make_info(18000, 4000), QUERIES)
    write_reference(tmp_path / OVERLAY, plan, make_info(18000, 4000), slide)
    written = [level.index for level in levels_of(plan) if (tmp_path / OVERLAY / str(level.index) / "c").exists()]
    assert written == [2, 3, 4, 5]
    # Level 2 is ceil(9000 / 4) pixels of 8 level-0 pixels each.
    assert slide.read == [(0, 0, 2250 * 8.0, 500 * 8.0)]
    finest = np.moveaxis(open_level(tmp_path / OVERLAY, "", 2)[:], 0, 2)
    assert np.array_equal(np.moveaxis(open_level(tmp_path / OVERLAY, "", 3)[:], 0, 2), halve_mean(finest))
    assert open_level(tmp_path / OVERLAY, "", 0).shape == (3, 2000, 9000)


def test_a_huge_slide_without_a_pyramid_is_sampled(tmp_path):
    plan = make_plan(60000, 30000, block_px=4096)
    create_overlay(tmp_path / OVERLAY, plan, make_info(120000, 60000), QUERIES)
    slide = FlatSlide()
    write_reference(tmp_path / OVERLAY, plan, make_info(120000, 60000), slide)
    assert slide.read == []
    assert np.unique(open_level(tmp_path / OVERLAY, "", 4)[:]).tolist() == [7]


def test_blocks_that_no_level_can_halve_leave_the_levels_to_finish():
    assert [level.owned for level in levels_of(make_plan(4000, 10, block_px=512))] == [True, False, False, False]
    assert [level.shard_px for level in levels_of(make_plan(9000, 9000, block_px=1536))] == [
        1536,
        512,
        512,
        512,
        512,
        512,
    ]
    assert [level.shard_px for level in levels_of(make_plan(9000, 9000, block_px=2048))][:4] == [2048, 1024, 512, 512]
