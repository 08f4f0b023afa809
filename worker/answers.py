"""The answer to a query in sentences: what was found and where, how far it can be believed, what was not looked at."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.evidence import WEAK, WEAK_AGREEMENT
from worker.report_parts import coverage_words
from worker.types import JobSpec, Region, SlideInfo, TileRecord
from worker.wording import (
    area_words,
    conclusion_of,
    count_words,
    exemplar_words,
    percent_words,
    place_phrase,
)

SAID_KEPT = 2000
SAID_SHOWN = 3
FAR_SHARE = 0.1
"""Of the tiles; where fewer have a stain far from the trained ones, the answer does not speak of it."""


@dataclass
class Tally:
    """What the tiles of one query said, counted while records stream by.

    Attributes:
        emitted, silent, second_looks: tiles that pointed, that did not, that were asked again.
        checked, contradicting: tiles whose words were held against their mask, and that contradict it.
        unpointed: silent tiles that say it is there.
        said: what silent tiles said, and how many of them.
    """

    emitted: int = 0
    silent: int = 0
    second_looks: int = 0
    checked: int = 0
    contradicting: int = 0
    unpointed: int = 0
    said: Counter = field(default_factory=Counter)

    def add(self, record: TileRecord) -> None:
        """Count a record of a tile that was looked at."""
        self.emitted += record.emitted
        self.silent += not record.emitted
        self.second_looks += record.second_look
        silent = not record.emitted and not record.second_look
        if record.claims is not None:
            self.checked += 1
            self.contradicting += any(record.claims.values())
            self.unpointed += silent and bool(record.claims.get("emptiness"))
        words = conclusion_of(record.text)
        if silent and (words in self.said or len(self.said) < SAID_KEPT):
            self.said[words] += 1


def answer_query(
    index: int, spec: JobSpec, info: SlideInfo, regions: Sequence[Region], tally: Tally, coverage: Mapping[str, Any]
) -> dict[str, Any]:
    """One question with its answer in numbers and words.

    Args:
        index: which query.
        spec: what was asked.
        info: the slide.
        regions: of this query.
        tally: of its tiles.
        coverage: the report's.
    """
    area_um2 = sum(region.area_um2 for region in regions)
    largest = max(regions, key=lambda region: (region.area_um2, -region.label), default=None)
    said = [{"text": text, "tiles": count} for text, count in tally.said.most_common(SAID_SHOWN) if text]
    looked_um2 = coverage["looked_at_um2"]
    share = min(1.0, area_um2 / looked_um2) if looked_um2 else 0.0
    if largest is None:
        sentences = _not_found(spec, tally, said, coverage)
    else:
        sentences = _found(info, regions, largest, area_um2, share, looked_um2)
    return {
        "query_index": index,
        "query": spec.queries[index],
        "found": largest is not None,
        "answer": " ".join(sentences),
        "details": sentences[1:],
        "regions": len(regions),
        "area_um2": round(area_um2, 3),
        "share_of_looked_at": round(share, 6),
        "largest_region": largest.region_id if largest else None,
        "weak_regions": {name: sum(name in region.weak for region in regions) for name in WEAK},
        "tiles_emitted": tally.emitted,
        "tiles_silent": tally.silent,
        "tiles_checked": tally.checked,
        "tiles_contradicting": tally.contradicting,
        "second_looks": tally.second_looks,
        "silent_tiles_said": said,
    }


def _found(
    info: SlideInfo, regions: Sequence[Region], largest: Region, area_um2: float, share: float, looked_um2: float
) -> list[str]:
    """The answer's sentences when there are regions."""
    words = [
        f"Found: {count_words(len(regions), 'region')}, together {area_words(area_um2)}, "
        f"{percent_words(share)} of the {area_words(looked_um2)} looked at."
    ]
    place = place_phrase(largest.centroid_px0, info)
    name = "It lies" if len(regions) == 1 else f"The largest ({area_words(largest.area_um2)}) lies"
    words.append(f"{name} {place}.")
    conclusion = conclusion_of(largest.chain)
    if conclusion:
        words.append(f"Its reasoning chain concludes: “{conclusion}”")
    weak = [region for region in regions if region.weak]
    if weak:
        words.append(_weak(regions, weak, area_um2))
    return words


def _weak(regions: Sequence[Region], weak: Sequence[Region], area_um2: float) -> str:
    """How many regions rest on weak evidence, and what speaks against them."""
    said = {
        "agreement": f"overlapping tiles disagree (agreement below {WEAK_AGREEMENT:g})",
        "stain": "the stain is far from what the model was trained on",
        "contradiction": "the chain contradicts its own outline",
    }
    counts = {name: sum(name in region.weak for region in weak) for name in WEAK}
    if len(regions) == 1:
        return f"The evidence for it is weak: {'; '.join(said[name] for name in WEAK if counts[name])}."
    share = sum(region.area_um2 for region in weak) / area_um2
    reasons = "; ".join(f"in {counts[name]:,} {said[name]}" for name in WEAK if counts[name])
    return (
        f"The evidence is weak for {len(weak):,} of {count_words(len(regions), 'region')}, "
        f"{percent_words(share)} of their area: {reasons}."
    )


def _not_found(
    spec: JobSpec, tally: Tally, said: Sequence[Mapping[str, Any]], coverage: Mapping[str, Any]
) -> list[str]:
    """The answer's sentences when there is none: plainly, and what the model said instead."""
    if not coverage["looked_at"]:
        return ["Nothing was looked at, so nothing can be said."]
    tiles, looked_um2 = coverage["looked_at"], coverage["looked_at_um2"]
    words = [f"Not found in the {count_words(tiles, 'tile')} looked at ({area_words(looked_um2)})."]
    if tally.emitted:
        words.append(
            f"{count_words(tally.emitted, 'tile')} pointed at something, but no region of at least "
            f"{area_words(spec.min_region_um2)} reached the threshold of {spec.threshold:g}."
        )
    if tally.unpointed:
        verb = "says" if tally.unpointed == 1 else "say"
        words.append(f"{count_words(tally.unpointed, 'tile')} {verb} that it is there, but pointed at nothing.")
    if said:
        share = f"{said[0]['tiles']:,} of {tally.emitted + tally.silent:,}"
        words.append(f"What most tiles said ({share}): “{said[0]['text']}”")
    left_um2 = coverage["not_looked_at_um2"]
    if left_um2 >= 0.5:
        share = min(1.0, left_um2 / coverage["slide_um2"])
        words.append(
            f"This says nothing of the {area_words(left_um2)} not looked at, {percent_words(share)} of the slide."
        )
    return words


def whole_answer(
    queries: Sequence[Mapping[str, Any]],
    coverage: Mapping[str, Any],
    stain: Mapping[str, Any] | None,
    exemplar: Mapping[str, Any] | None,
    slide_id: str,
) -> str:
    """The answer to everything asked: what it was compared with, how far it can be believed, what was not looked at.

    Args:
        queries: from `answer_query`, in order.
        coverage, stain, exemplar: the report's.
        slide_id: the job's own slide.
    """
    if len(queries) == 1:
        parts = [queries[0]["answer"]]
    else:
        parts = [f"“{query['query']}”: {query['answer']}" for query in queries]
    shown = [] if exemplar is None else [exemplar_words(exemplar, slide_id)]
    far = far_words(stain)
    return "\n".join([*parts, *shown, *([far] if far else []), coverage_words(coverage)])


def far_words(stain: Mapping[str, Any] | None) -> str:
    """A warning where the slide's stain is not one that the model was trained on; empty where it is, or is not known.

    Args:
        stain: the report's.
    """
    if stain is None or (not stain["far"] and stain["far_tiles"] < FAR_SHARE * stain["tiles"]):
        return ""
    return (
        f"The stain of {stain['far_tiles']:,} of {count_words(stain['tiles'], 'tile')} is far from what the model was "
        f"trained on ({stain['shift_sd']:.1f} standard deviations over the slide; more than {stain['limit_sd']:.1f} is "
        "far): what it says of them has weak evidence."
    )
