"""Runbook, sizing and operations: whole sections, commands that are accepted, settings and figures that are there."""

import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from service import jobs_cli
from tests.deploy.known import DEPLOY, REPOSITORY, gateway_settings, metric_names, worker_settings
from worker import ledger_cli

PAGES = ("deploy/runbook.md", "deploy/sizing.md", "docs/operations.md")
SECTIONS = (
    "Upgrade", "Rollback", "Lost Redis", "Lost node", "Full disk", "Storage down", "Database restore", "Stuck job",
    "Poison tile",
)  # fmt: skip


@cache
def page(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", page("deploy/runbook.md"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def commands(text: str) -> list[str]:
    """The commands of indented blocks, without comments."""
    lines = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    return [part.strip() for line in lines for part in line.partition(" #")[0].split(";")]


def test_the_runbook_has_every_section_and_each_is_whole() -> None:
    assert tuple(sections()) == SECTIONS
    for name, text in sections().items():
        for part in ("*Seen by users:*", "*Lost:*", "*Over when*"):
            assert part in text, f"{name}: {part}"
        assert name == "Full disk" or commands(text), f"{name} has no command"


@pytest.mark.parametrize("name", [*PAGES, "docs/command-line.md"])
def test_commands_of_ours_are_accepted(name: str) -> None:
    found = [command for command in commands(page(name)) if re.match(r"slidereason (jobs|ledger) ", command)]
    found += re.findall(r"`(slidereason (?:jobs|ledger) [^`|]+)`", page(name))
    assert found or name in ("deploy/sizing.md", "docs/operations.md")
    for command in found:
        _, tool, *arguments = shlex.split(command)
        parser = jobs_cli._parser() if tool == "jobs" else ledger_cli._parser()
        parser.parse_args(arguments)


@pytest.mark.parametrize("name", PAGES)
def test_settings_and_metrics_that_are_named_exist(name: str) -> None:
    settings = gateway_settings() | worker_settings()
    assert set(re.findall(r"SLIDEREASON_[A-Z_]+[A-Z]", page(name))) <= settings
    known = metric_names()
    families = known | {re.sub(r"_(bucket|total)$", "", metric) for metric in known}
    assert set(re.findall(r"\bslidereason_\w+", page(name))) <= families


def test_every_metric_is_explained() -> None:
    own = {name for name in metric_names() if name.startswith("slidereason_")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in own}
    assert [name for name in sorted(families) if f"`{name}" not in page("docs/operations.md")] == []


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name: str) -> None:
    for path in re.findall(r"\b((?:deploy|benchmarks)/[\w./-]+\w)", page(name)):
        assert (REPOSITORY / path).exists(), path


def test_the_runbook_talks_of_what_is_deployed() -> None:
    manifests = "".join(path.read_text() for path in sorted(DEPLOY.glob("base/*.yaml")))
    for kind, name in re.findall(r"\b(deployment|statefulset|hpa)[ /](\w+)", " ".join(commands(page(PAGES[0])))):
        kinds = {"hpa": "HorizontalPodAutoscaler", "deployment": "Deployment", "statefulset": "StatefulSet"}
        assert re.search(rf"kind: {kinds[kind]}\nmetadata:\n  name: {name}\n", manifests), (kind, name)
    assert "autoscaling.keda.sh/paused-replicas" in page(PAGES[0])


def slides_per_hour(tissue_mm2: float, rate: float, stride_mm: float = 0.112) -> float:
    """deploy/sizing.md's formula, at first for 224 px at 1.0 µm/px and overlap 0.5; 10 s to plan and finish."""
    return 3600 / (tissue_mm2 / stride_mm**2 / rate + 10)


def test_the_table_of_slides_per_hour_is_the_formulas() -> None:
    rows = re.findall(r"^\| [\w ]+, (\d+) mm² \| ([\d,]+) \| (.+) \|$", page("deploy/sizing.md"), re.MULTILINE)
    assert len(rows) == 6
    rates = {"tiny": (0.112, (17.8, 50, 100, 200, 322)), "paper-7b": (0.128, (57.3,))}  # stride in mm, tiles/s
    for (stride_mm, of_model), its_rows in zip(rates.values(), (rows[:3], rows[3:]), strict=True):
        for tissue, tiles, cells in its_rows:
            assert int(tiles.replace(",", "")) == round(int(tissue) / stride_mm**2)
            for rate, cell in zip(of_model, cells.split(" | "), strict=True):
                expected = slides_per_hour(int(tissue), rate, stride_mm)
                assert float(cell) == pytest.approx(expected, rel=0.04), (tissue, rate)


def test_measured_figures_are_those_of_the_results() -> None:
    text = page("deploy/sizing.md")
    results = Path(REPOSITORY, "benchmarks", "results")
    decode = {m["name"]: m for m in json.loads((results / "decode.json").read_text())["measurements"]}
    ours = decode[ours_10 := "scripted answers, 10% of tiles point: ours"]
    assert f"{ours['median']:.1f} ({ours['min']:.1f} to {ours['max']:.1f})" in text
    assert f"{decode['scripted answers, 100% of tiles point: ours']['median']:.1f} when all do" in text
    memory = {m["name"]: m for m in json.loads((results / "memory.json").read_text())["measurements"]}
    job = memory["one job"]
    for name, rate in (("segmenter-h200", "batch 32, free"), ("decode-paper-7b", ours_10)):
        found = {m["name"]: m for m in json.loads((results / f"{name}.json").read_text())["measurements"]}[rate]
        digits = 1 if found["median"] < 100 else 0
        assert f"{found['median']:.{digits}f} ({found['min']:.{digits}f} to {found['max']:.{digits}f})" in text
    assert f"{job['notes']['tiles'] / job['median']:.0f}: {job['notes']['tiles']:,} tiles in 1,530 s" in text
    assert f"{memory['peak memory of the worker']['median'] / 1000:.2f} GB" in text
