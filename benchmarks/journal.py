"""What the decoding benchmark has found so far, as measurements and as a table; written after every finding."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.ceilings import Ceilings
from benchmarks.pairs import Agreement, Timing, ratios
from benchmarks.record import Measurement

SHOWN = {
    "ours": "**ours**",
    "lisa": "(a) LISA-style loop, no cache",
    "cached": "(b) the same with a KV cache",
    "generate": "(c) `generate()`, static batch",
    "generate_all": "(c-all) the same, MedSAM on every tile",
}


@dataclass
class Stage:
    """One of our stages against the ceilings: its seconds, its operations, and the bytes it cannot avoid, or None."""

    seconds: float
    flops: float | None = None
    bytes: float | None = None


@dataclass
class Study:
    """One workload.

    Attributes:
        label: what it is; tiles, lengths, emitted: how many, how long their answers, how many point.
        timings, agreements: by contender.
        stages: ours, by name.
    """

    label: str
    tiles: int
    lengths: str
    emitted: int
    timings: dict[str, Timing] = field(default_factory=dict)
    agreements: dict[str, Agreement] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)

    def measurements(self) -> list[Measurement]:
        """Speeds, and in each pair of runs how much faster we are."""
        found, ours = [], self.timings["ours"]
        for name, timing in self.timings.items():
            if not timing.seconds:
                continue
            notes: dict[str, Any] = asdict(timing) | {"tokens_per_s": timing.tokens_per_s}
            found.append(Measurement(f"{self.label}: {name}", "tiles/s", timing.tiles_per_s, notes))
            if name != "ours" and ours.seconds:
                told = asdict(self.agreements[name]) if name in self.agreements else {}
                faster = ratios(ours, timing)
                found.append(Measurement(f"{self.label}: ours against {name}", "times", faster, {"agreement": told}))
        return found


@dataclass
class Journal:
    """All findings.

    Attributes:
        title: of the table.
        tell: called with the journal after every change.
    """

    title: str
    tell: Callable[["Journal"], None] = lambda _: None
    studies: list[Study] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ceilings: Ceilings | None = None
    disagreed: bool = False

    def note(self, text: str) -> None:
        """Something the reader must know."""
        self.notes.append(text)
        self.tell(self)

    def measurements(self) -> list[Measurement]:
        """Everything, in order; of each of our stages its share of the ceilings."""
        found = [m for study in self.studies for m in study.measurements()]
        if (most := self.ceilings) is not None:
            found.append(Measurement("ceiling: matrix product", "FLOP/s", (most.flops,), {"dtype": most.dtype}))
            found.append(Measurement("ceiling: copy", "bytes/s", (most.bytes,)))
        for study in self.studies:
            for name, stage in study.stages.items():
                found.append(Measurement(f"{study.label}: stage {name}", "s", (stage.seconds,), self.shares(stage)))
        return found

    def shares(self, stage: Stage) -> dict[str, float]:
        """A stage's operations and bytes, and which share of the ceilings they reach."""
        told = {}
        for kind in ("flops", "bytes"):
            amount = getattr(stage, kind)
            if amount and stage.seconds and self.ceilings is not None:
                told[kind] = amount
                told[f"{kind}_share_of_ceiling"] = amount / stage.seconds / getattr(self.ceilings, kind)
        return told

    def table(self) -> str:
        """Markdown."""
        lines = [f"# {self.title}", ""]
        for study in self.studies:
            lines += [f"## {study.label}", "", _described(study), ""]
            lines += ["| | tiles/s | tokens/s | ours is faster by | rounds | peak memory | same answers |"]
            lines += ["|---|---|---|---|---|---|---|"]
            lines += [_row(study, name, timing) for name, timing in study.timings.items() if timing.seconds] + [""]
            lines += self._stage_lines(study)
        if self.ceilings is not None:
            lines += [
                f"Ceilings measured here: matrix product {self.ceilings.flops / 1e12:.3g} TFLOP/s in "
                f"{self.ceilings.dtype}, copy {self.ceilings.bytes / 1e9:.3g} GB/s read and written.", "",
            ]  # fmt: skip
        return "\n".join(lines + [f"- {note}" for note in self.notes]) + "\n"

    def _stage_lines(self, study: Study) -> list[str]:
        names = ("see", "prefill", "steps", "generate", "survey", "masks")
        lines = ["| seconds by stage | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for name, timing in study.timings.items():
            if timing.stages:
                cells = [f"{timing.stages[n]:.3g}" if n in timing.stages else "" for n in names]
                lines.append(f"| {SHOWN[name]}, {timing.tiles} tiles | " + " | ".join(cells) + " |")
        for kind, told in (("flops", "of the matrix-product ceiling"), ("bytes", "of the copy ceiling, at least")):
            shares = {n: self.shares(s).get(f"{kind}_share_of_ceiling") for n, s in study.stages.items()}
            if any(shares.values()):
                cells = [f"{shares[n]:.0%}" if shares.get(n) else "" for n in names]
                lines.append(f"| ours, {told} | " + " | ".join(cells) + " |")
        return [*lines, ""]


def _described(study: Study) -> str:
    return f"{study.tiles} tiles, {study.emitted} answers with a `<SEG>`; answers of {study.lengths}."


def _row(study: Study, name: str, timing: Timing) -> str:
    faster, same = "", ""
    if name != "ours" and (values := ratios(study.timings["ours"], timing)):
        faster = f"{statistics.median(values):.3g}× ({min(values):.3g} to {max(values):.3g})"
    if (told := study.agreements.get(name)) is not None:
        same = f"{told.same_text} of {told.tiles} texts; {told.masks} masks within {told.max_difference:.1g}"
    memory = "" if timing.peak_mb is None else f"{timing.peak_mb:,.0f} MB"
    scaled = "" if timing.tiles == study.tiles else f", {timing.tiles} tiles"
    speed = f"{statistics.median(timing.tiles_per_s):.3g} | {timing.tokens_per_s:.3g}"
    return f"| {SHOWN[name]}{scaled} | {speed} | {faster} | {len(timing.seconds)} | {memory} | {same} |"
