"""The schema of a built data set: what goes in comes out, and what is wrong is named by line and field."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from model.data.sample import (
    Provenance,
    Review,
    Sample,
    episode_of,
    from_json,
    magnification_of,
    pixel_hash,
    read_samples,
    read_scenes,
    scene_of,
    to_json,
    write_samples,
)
from model.data.sample_schema import FIELDS, SampleError
from model.data.scene import Episode

CHAIN = "<think> Looking for glands. One lies in the left area. </think> Found in the left area: glands <SEG>."
PROVENANCE = Provenance("model.data.crag.read_crag", "template", {"numpy": "2"}, 7, ("form",), "ab" * 32)
SAMPLE = Sample(
    id="crag/a#0", scene="a", image="images/a.png", masks={"gland": "masks/a.png"}, absent=("tumour",),
    query="Where are the glands?", chain=CHAIN, targets=("gland",), concept="gland", kind="named", organ="colon",
    mpp=0.5, stain="H&E", source="crag", patient="train", licence="research-only",
    facts={"gland": {"share": 0.25, "pieces": 1.0}}, provenance=PROVENANCE,
)  # fmt: skip


def changed(path: str, value) -> str:
    """The sample's line with one field set, or, where the value is `...`, taken away."""
    line = json.loads(to_json(SAMPLE))
    *parts, last = path.split(".")
    inside = line
    for part in parts:
        inside = inside[part]
    if value is ...:
        del inside[last]
    else:
        inside[last] = value
    return json.dumps(line)


def test_a_sample_survives_its_line():
    reviewed = replace(
        SAMPLE, provenance=replace(PROVENANCE, review=Review("edited", "Dr. A", "2026-01-02T03:04:05+00:00"))
    )
    for sample in (SAMPLE, reviewed, replace(SAMPLE, mpp=None)):
        assert "\n" not in to_json(sample)
        assert from_json(to_json(sample)) == sample


def test_the_line_has_the_fields_that_the_schema_names_and_no_other():
    line = json.loads(to_json(SAMPLE))
    assert set(line) == {*FIELDS, "provenance"} and line["magnification"] == 20.0
    assert set(line["provenance"]) == {"reader", "generator", "versions", "seed", "checks", "image_sha256", "review"}


@pytest.mark.parametrize(
    ("mpp", "magnification"),
    [(0.25, 40), (0.243, 40), (0.5, 20), (0.55, 20), (0.62, 20), (1.0, 10), (2.0, 5), (29.0, 0.3125), (None, None)],
)
def test_magnification_follows_from_the_scale(mpp, magnification):
    assert magnification_of(mpp) == magnification


@pytest.mark.parametrize("field", [*FIELDS, "provenance", "provenance.seed", "provenance.review.state"])
def test_a_field_that_is_missing_is_named(field):
    with pytest.raises(SampleError, match=rf"line 3: field {field} is missing"):
        from_json(changed(field, ...), "line 3")


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("id", " ", "must be a text"),
        ("colour", "red", "is unknown; id, scene"),
        ("image", "/abs/a.png", "relative to the folder"),
        ("image", "../a.png", "relative to the folder"),
        ("masks", {"gland": "a\\b.png"}, "must be an object of file names: 'gland' must be a file's name"),
        ("masks", [], "must be an object of file names"),
        ("absent", ["tumour", "tumour"], "list of different texts"),
        ("absent", ["gland"], "names 'gland', which has a mask"),
        ("targets", ["polyp"], "names 'polyp', which has no mask"),
        ("targets", [], r"are \[\] in a question of kind named"),
        ("kind", "exemplar", "named, implied, absent, unknown are accepted"),
        ("concept", None, "is None in a question of kind named"),
        ("mpp", 0, "must be a number above 0, or null"),
        ("mpp", True, "must be a number above 0"),
        ("mpp", "0.5", "must be a number above 0"),
        ("magnification", 40.0, "is 40.0; 20.0 follows from mpp 0.5"),
        ("chain", "nothing is here", "holds 0 <SEG>, but there are 1 targets"),
        ("facts", {"gland": {"share": "much"}}, "'share' must be a number"),
        ("provenance", 3, "must be an object"),
        ("provenance.seed", -1, "must be a whole number"),
        ("provenance.image_sha256", "12", "SHA-256"),
        ("provenance.versions", {"numpy": 2}, "must be an object of texts"),
        ("provenance.review.state", "good", "unreviewed, accepted, edited, rejected are accepted"),
        ("provenance.review.state", "accepted", None),
        ("provenance.review.reviewer", "Dr. A", "is 'Dr. A' while unreviewed"),
        ("provenance.review.time", "2026-01-02T03:04:05", "ISO 8601 with its offset"),
    ],
)
def test_a_field_that_is_wrong_is_named(field, value, problem):
    named = field if problem else "provenance.review.reviewer"
    with pytest.raises(SampleError, match=rf"line 8: field {named} .*{problem or 'is None while accepted'}") as caught:
        from_json(changed(field, value), "line 8")
    assert caught.value.field == named


def test_an_absent_concept_must_be_known_to_be_absent():
    gone = replace(
        SAMPLE, targets=(), kind="absent", concept="tumour", chain="<think> x </think> No tumour is found here."
    )
    assert from_json(to_json(gone)) == gone
    with pytest.raises(SampleError, match="field concept is 'fat', which `absent` does not name"):
        from_json(to_json(replace(gone, concept="fat")))


def test_a_line_that_is_no_json_is_named():
    with pytest.raises(SampleError, match="line 2: field .whole line. is no JSON"):
        from_json("{", "line 2")


def test_a_file_names_its_line_a_repeated_id_and_a_missing_file(tmp_path):
    path = tmp_path / "train.jsonl"
    write_samples(path, [SAMPLE, replace(SAMPLE, id="b")])
    with pytest.raises(SampleError, match=r"train.jsonl, line 1: field image 'images/a.png' is not in"):
        list(read_samples(path))
    assert [sample.id for sample in read_samples(path, check_files=False)] == ["crag/a#0", "b"]
    write_samples(path, [SAMPLE, SAMPLE])
    with pytest.raises(SampleError, match=r"train.jsonl, line 2: field id 'crag/a#0' was there before"):
        list(read_samples(path, check_files=False))
    path.write_text(f"{to_json(SAMPLE)}\n\n{changed('query', '')}\n")
    with pytest.raises(SampleError, match=r"line 3: field query must be a text"):
        list(read_samples(path, check_files=False))
    assert not list(tmp_path.glob(".*"))


def write_set(folder):
    image = np.random.default_rng(1).integers(0, 255, (8, 12, 3), np.uint8)
    mask = np.zeros((8, 12), bool)
    mask[2:5, 3:9] = True
    for name, pixels in (("images/a.png", image), ("masks/a.png", mask)):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return image, mask


def test_scene_and_episode_come_back(tmp_path):
    image, mask = write_set(tmp_path)
    scene = scene_of(SAMPLE, tmp_path)
    assert (scene.image == image).all() and (scene.masks["gland"] == mask).all() and scene.masks["gland"].dtype == bool
    assert (scene.id, scene.source, scene.patient, scene.mpp) == ("a", "crag", "train", 0.5)
    assert scene.absent == {"tumour"} and scene.facts == {"gland": {"share": 0.25, "pieces": 1.0}}
    assert episode_of(SAMPLE) == Episode("Where are the glands?", CHAIN, ("gland",), "gland", "named")


def test_a_picture_is_read_once_with_all_its_questions(tmp_path):
    write_set(tmp_path)
    others = [replace(SAMPLE, id=f"crag/a#{number}", query=f"{number}?") for number in range(2)]
    write_samples(tmp_path / "train.jsonl", [*others, replace(SAMPLE, id="crag/b#0", scene="b")])
    (first, asked), (second, once) = read_scenes(tmp_path / "train.jsonl")
    assert (first.id, second.id) == ("a", "b")
    assert [episode.query for episode in asked] == ["0?", "1?"] and len(once) == 1


def test_a_mask_of_another_size_or_one_that_does_not_open_is_named(tmp_path):
    write_set(tmp_path)
    Image.new("1", (4, 4)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(SampleError, match=r"crag/a#0: field masks.gland is \(4, 4\), its picture \(8, 12\)"):
        scene_of(SAMPLE, tmp_path)
    (tmp_path / "masks" / "a.png").write_bytes(b"")
    with pytest.raises(SampleError, match="field masks.gland does not open"):
        scene_of(SAMPLE, tmp_path)


def test_the_hash_is_of_pixels_and_shape():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pixel_hash(image) == pixel_hash(np.asfortranarray(image))
    assert pixel_hash(image) != pixel_hash(image.reshape(4, 2, 3))
    other = image.copy()
    other[0, 0, 0] += 1
    assert pixel_hash(image) != pixel_hash(other)
