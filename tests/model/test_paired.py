"""Two models on the same rows: paired differences, against numbers worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.cli import run_evaluate
from model.evaluation.bootstrap import differences
from model.evaluation.figures import figures, table
from model.evaluation.paired import SHOWN, compare, comparison_text
from model.evaluation.results import ResultsError, read_results
from model.segmenter import SegmenterCard, TileAnswer, TileBatch

TILE = 64
LEFT, TOP = np.zeros((2, TILE, TILE), bool)
LEFT[:, : TILE // 2] = True
TOP[: TILE // 2] = True


class Scripted:
    """Answers each query with the mask it was given, or says nothing; forced, it shows the upper half."""

    def __init__(self, name: str, script: dict[str, np.ndarray]):
        self.card = SegmenterCard(name, f"{name}-1", TILE, 1.0)
        self.script = script

    def predict(self, batch: TileBatch, cancelled=None) -> list[TileAnswer]:
        """See `model.segmenter.Segmenter.predict`."""
        answers = []
        for query, forced in zip(batch.queries, batch.forced, strict=True):
            mask = self.script.get(query, TOP if forced else None)
            if mask is None:
                answers.append(TileAnswer("No such thing is found here.", np.zeros((0, TILE, TILE), np.float16)))
            else:
                text = "Found in the left area: it <SEG>."
                answers.append(TileAnswer(text, mask[None].astype(np.float16), ("it",), np.ones(1, np.float32), 0.9))
        return answers


def first() -> Scripted:
    """Finds one of two targets, exactly; points once where nothing is."""
    return Scripted("first", {"q1": LEFT, "q4": TOP})


def second() -> Scripted:
    """Points always: one target by half, one exactly."""
    return Scripted("second", {"q1": TOP, "q2": LEFT, "q3": TOP, "q4": TOP})


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two patients, each with a target in the left half and a question about something that is not there."""
    Image.fromarray(np.full((TILE, TILE, 3), 200, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(LEFT).save(tmp_path / "left.png")
    rows = [
        {"id": query, "image": "a.png", "mask": mask, "query": query, "mpp": 1.0, "group": group, "kind": kind}
        for query, mask, group, kind in (
            ("q1", "left.png", "p1", "present"), ("q2", "left.png", "p2", "present"), ("q3", None, "p1", "absent"),
            ("q4", None, "p2", "absent"),
        )
    ]  # fmt: skip
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(manifest: Path, name: str, *options: str) -> dict:
    out = manifest.parent / f"{name}.json"
    model = ["--model", f"tests.model.test_paired:{name}", "--bootstrap", "200", "--out", str(out)]
    assert run_evaluate([str(manifest), *model, *options]) == 0
    return json.loads(out.read_text())


def test_differences_by_hand(manifest: Path):
    compared = compare(asked(manifest, "first")["samples"], asked(manifest, "second")["samples"], resamples=200)
    difference = compared["difference"]
    # Dice of the upper half against the left half: 2 · 1/4 / (1/2 + 1/2) = 1/2.
    expected = {
        "dice_with_misses": (1 + 0) / 2 - (0.5 + 1) / 2,
        "dice_emitted": 1 - 0.75,
        "dice_forced": (1 + 0.5) / 2 - (0.5 + 1) / 2,  # silent on q2, forced to the upper half there
        "sensitivity": 0.5 - 1,
        "specificity": 0.5 - 0,
        "balanced_accuracy": 0.5 - 0.5,
        "emission_precision": 1 / 2 - 2 / 4,
        "giou": (1 + 0) / 2 - (1 / 3 + 1) / 2,
    }
    assert {name: difference[name] for name in expected} == pytest.approx(expected)
    assert (compared["n"], compared["n_groups"]) == (4, 2)
    assert compared["model"]["dice_forced"] == compared["against"]["dice_forced"] == 0.75
    assert compared["by_kind"]["present"]["sensitivity"] == -0.5 and compared["by_kind"]["absent"]["n"] == 2
    assert compared["by_kind"]["absent"]["sensitivity"] is None
    # Two patients: p1 alone gains 0.5 of Dice, p2 alone loses 1; drawn together, nothing lies outside.
    assert difference["intervals_95"]["dice_with_misses"] == pytest.approx((-1.0, 0.5))


def test_the_sign_turns_with_the_sides_and_a_model_does_not_differ_from_itself(manifest: Path):
    ours, theirs = (asked(manifest, name)["samples"] for name in ("first", "second"))
    there, back = compare(ours, theirs, 50)["difference"], compare(theirs, ours, 50)["difference"]
    assert there["sensitivity"] == -back["sensitivity"] == -0.5
    same = compare(ours, list(reversed(ours)), 50)["difference"]  # order does not matter, ids do
    assert same["dice_with_misses"] == 0.0 and same["intervals_95"]["dice_with_misses"] == (0.0, 0.0)


def test_pairing_narrows_what_both_sides_share():
    rng = np.random.default_rng(0)
    hard = rng.random(60)  # how hard a row is decides both
    ours = table([{"target": 1, "dice": 0.9 - 0.8 * value, "emitted_target": 1, "row": 1} for value in hard])
    theirs = table([{"target": 1, "dice": 0.85 - 0.8 * value, "emitted_target": 1, "row": 1} for value in hard])
    values, intervals = differences(ours, theirs, range(60), figures, resamples=300)
    assert values["dice_emitted"] == pytest.approx(0.05)
    assert intervals["dice_emitted"] == pytest.approx((0.05, 0.05))


def test_the_command_asks_both_and_writes_the_difference(manifest: Path, capsys):
    results = asked(manifest, "first", "--against", "tests.model.test_paired:second", "--boundary-tolerance", "2px")
    assert results["model"]["name"] == "first" and results["against"]["model"]["name"] == "second"
    assert results["paired"]["difference"]["sensitivity"] == -0.5
    assert results["options"]["boundary_tolerance"] == "2px"
    assert [sample["id"] for sample in results["against"]["samples"]] == ["q1", "q2", "q3", "q4"]
    told = capsys.readouterr().out
    assert "difference = model − against" in told and all(name in told for name in ("dice_forced", "specificity"))


def test_results_on_disk_stand_in_for_a_model(manifest: Path):
    asked(manifest, "second")
    results = asked(manifest, "first", "--against", str(manifest.parent / "second.json"))
    assert results["paired"]["difference"]["dice_with_misses"] == pytest.approx(-0.25)


def test_every_sample_tells_its_further_figures(manifest: Path):
    q1, q2, q3, q4 = asked(manifest, "first")["samples"]
    assert (q1["boundary_f1"], q2["boundary_f1"], q3["boundary_f1"]) == (1.0, 0.0, None)
    assert (q1["dice_forced"], q2["dice_forced"], q4["dice_forced"]) == (1.0, 0.5, None)
    # "Found in the left area: it <SEG>.": six words before, a place among them
    assert q1["seg_timing"] == {"words": 6, "share": 1.0, "placed": True, "extra": 0} and q2["seg_timing"] is None
    assert q1["contradicted"] == {"emptiness": False, "place": False} and q2["contradicted"] == {"emptiness": False}
    assert q1["terms"]["dice"] == 1.0 and "dice" not in q2["terms"] and "chain" not in q1


def test_rows_that_differ_are_named(manifest: Path, capsys):
    samples = asked(manifest, "first")["samples"]
    with pytest.raises(ValueError, match=r"1 rows \(q4, …\) have one answer"):
        compare(samples, samples[:3])
    with pytest.raises(ValueError, match="row 'q2', field query"):
        compare(samples, [{**sample, "query": sample["query"].replace("q2", "other")} for sample in samples])
    with pytest.raises(ValueError, match="no rows"):
        compare([], [])


def test_results_without_terms_are_refused_by_name(manifest: Path, capsys):
    results = asked(manifest, "second")
    for sample in results["samples"]:
        del sample["terms"]
    old = manifest.parent / "old.json"
    old.write_text(json.dumps(results))
    with pytest.raises(ResultsError, match=r"old\.json: field terms is missing"):
        read_results(old)
    options = ["--model", "tests.model.test_paired:first", "--out", str(manifest.parent / "x.json")]
    assert run_evaluate([str(manifest), *options, "--against", str(old)]) == 2
    assert "field terms is missing" in capsys.readouterr().err and not (manifest.parent / "x.json").exists()


def test_a_tolerance_that_is_none_is_refused_before_anything_runs(manifest: Path, capsys):
    options = ["--model", "no.such:thing", "--out", str(manifest.parent / "x.json"), "--boundary-tolerance", "wide"]
    assert run_evaluate([str(manifest), *options]) == 2
    assert "'wide'" in capsys.readouterr().err


def test_the_table_leaves_out_what_is_undefined(manifest: Path):
    samples = [sample for sample in asked(manifest, "first")["samples"] if sample["target"]]
    told = comparison_text(compare(samples, samples, 20), "new", "old")
    assert "specificity" not in told and "new − old" in told and "bleu4" in SHOWN and "bleu4" not in told
