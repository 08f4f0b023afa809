"""Provisional regions: where they lie, what they say, how many, the same each time, readable at once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import shapely

from tests.s3_server import S3Server
from worker.artifacts import Artifacts, LocalArtifacts, open_artifacts
from worker.components import local_components
from worker.ledger_done import DoneBlock
from worker.provisional import MOST_CORNERS, first_sentence, provisional_regions, write_provisional
from worker.provisional_files import read_provisional
from worker.types import Block, TilePlan, TileRecord

JOB = "ab" * 16
PLAN = TilePlan(4096, 4096, 0.5, 2.0, 4.0, 256, 128, (0, 0), 31, 31, 2048, ("1_1",), "", 900, 0)
BLOCK = Block(1, 1, 2048, 2048, 2048, 2048, (), (), frozenset())


def found(mask: np.ndarray, records: tuple[TileRecord, ...] = (), min_region_um2: float = 0.0, most: int = 40) -> list:
    probability = np.where(mask, 204, 0).astype(np.uint8)
    components, _ = local_components(probability, 0.5)
    more = (records, min_region_um2, most)
    return provisional_regions(JOB, PLAN, BLOCK, 0, probability, components, *more)


def shape(feature: dict) -> shapely.Polygon:
    return shapely.geometry.shape(feature["geometry"])


def test_a_piece_lies_where_it_is_with_its_hole_and_its_area():
    mask = np.zeros((2048, 2048), bool)
    mask[100:200, 300:500] = True
    mask[130:160, 350:400] = False
    (feature,) = found(mask)
    outline = shape(feature)
    assert outline.bounds == (2 * (2048 + 300), 4 * (2048 + 100), 2 * (2048 + 500), 4 * (2048 + 200))
    assert outline.is_valid and len(outline.interiors) == 1
    assert outline.area == pytest.approx(8 * (200 * 100 - 30 * 50), rel=0.02)
    assert feature["properties"] == {
        "query": 0, "block": "1_1", "area_um2": (200 * 100 - 30 * 50) * 0.25, "confidence": 0.8, "chain": "",
        "provisional": True,
    }  # fmt: skip


def test_the_largest_are_told_and_a_small_one_only_where_it_may_go_on():
    mask = np.zeros((2048, 2048), bool)
    for n in range(60):
        mask[12 + 32 * n : 16 + 32 * n + 4 * (n // 15), 100:108] = True
    areas = [feature["properties"]["area_um2"] for feature in found(mask)]
    assert len(areas) == 40 and areas == sorted(areas, reverse=True) and areas[0] == 16 * 8 * 0.25
    assert len(found(mask, min_region_um2=32.0)) == 15
    mask[:] = False
    mask[4, 0:3] = mask[900, 900] = True
    (edge,) = found(mask, min_region_um2=35.0)
    assert shape(edge).bounds == (4096.0, 4 * 2052.0, 4102.0, 4 * 2053.0), "a line of pixels has an area too"
    assert found(np.zeros((2048, 2048), bool)) == []


def test_names_are_stable_and_a_chain_is_that_of_the_tile_that_made_most():
    mask = np.zeros((2048, 2048), bool)
    mask[100:200, 300:500] = mask[900:990, 300:500] = True
    records = tuple(
        TileRecord(f"{n}_0", 0, 0, 0, 256, text=text, emitted=emitted, shares={"1_1/1": share, "0_1/2": 9.0})
        for n, (text, emitted, share) in enumerate(
            (("Small. More.", True, 1.0), ("Nuclei are  0.5 µm. More.", True, 3.0), ("Nothing.", False, 0.0))
        )
    )
    first, second = found(mask, records), found(mask, records)
    assert first == second
    assert [feature["properties"]["chain"] for feature in first] == ["Nuclei are 0.5 µm.", ""]
    assert len({feature["id"] for feature in first}) == 2
    assert len(first_sentence("word " * 100)) <= 240


def test_ragged_outlines_are_short_valid_and_cheap():
    noise = np.random.default_rng(7).random((2048, 2048))
    smooth = np.cumsum(np.cumsum(noise - 0.5, 0), 1)
    mask = (noise > 0.45) & (np.abs(smooth) % 900 < 500)
    features = found(mask)
    assert features
    for feature in features:
        assert shape(feature).is_valid and shape(feature).geom_type == "Polygon"
        assert shapely.get_num_coordinates(shape(feature)) <= MOST_CORNERS


@pytest.fixture(params=["folder", "bucket"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Artifacts]:
    if request.param == "folder":
        yield LocalArtifacts(tmp_path, durable=False)
        return
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        opened = open_artifacts(server.url("results"), tmp_path / "scratch")
        yield opened
        opened.close()


def test_it_is_read_where_the_attempt_wrote_it_until_it_is_published(artifacts: Artifacts):
    reader = artifacts.read(JOB)
    block = DoneBlock(1, "1_1", 3, regions=2)
    assert read_provisional(reader, DoneBlock(1, "1_1", 3, regions=0)) == []
    assert read_provisional(reader, block) is None
    lines = [b'{"id":"a"}', '{"id":"ü"}'.encode()]
    with artifacts.job(JOB) as store:
        write_provisional(store.attempt("1_1", 3), "1_1", [{"id": "a"}, {"id": "ü"}])
        store.save("1_1", 3)
        assert read_provisional(reader, block) == lines
        store.publish("1_1", 3)
    assert read_provisional(reader, block) == lines
    assert read_provisional(reader, DoneBlock(2, "1_1", 4, regions=2)) is None, "done afresh, and not yet in place"
