"""The report as Markdown (GitHub's flavour); words of people and models stay words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.answers import far_words
from worker.exports.job_results import JobResults
from worker.report_parts import (
    FLAGS_MEAN,
    by_size,
    coverage_words,
    evidence_words,
    facts,
    flags,
    plain_line,
    support_words,
)
from worker.wording import SEG, area_words, count_words, exemplar_words, percent_words, read_chain

ROWS = 500
"""The largest regions that are listed, of all queries together."""

_MARKS = re.compile(r"[\\`*_\[\]|~#$]")
_LINK = re.compile(r"(@|:(?=\S)|(?i:www)(?=\.))")
_BLOCK = re.compile(r"^(\d{1,9})([.)])(?=\s|$)|^([-+=])")


def write_markdown(results: JobResults, path: Path) -> None:
    """Write the report as Markdown.

    Args:
        results: of a finished job.
        path: the file; UTF-8. Areas in µm² or mm², frames in level-0 pixels. Of many regions the `ROWS` largest are
            listed, and the file says where the others are.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in _lines(results))


def escape(text: str) -> str:
    """A text as one line that Markdown shows as it is: no markup, HTML, table cell, mention or link comes of it."""
    line = plain_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _MARKS.sub(r"\\\g<0>", line)
    # Links are made of bare words too, after escapes are undone: a joiner that nobody sees keeps the words apart.
    line = _LINK.sub("\\1\u2060", line)
    return _BLOCK.sub(lambda found: f"{found[1]}\\{found[2]}" if found[1] else f"\\{found[3]}", line)


def _lines(results: JobResults) -> Iterator[str]:
    report = results.report
    title = "SlideReason report"
    yield from (f"# {title}", "", f"**{report['use']}** Made by a model, reviewed by nobody.", "")
    yield f"- Job: {escape(results.job_id)}"
    yield f"- Slide: {escape(report['slide']['slide_id'])}"
    yield from (f"- Finished: {results.finished:%Y-%m-%d %H:%M} UTC", "")
    yield from _answer(report)
    yield from _regions(report)
    yield from _silent(report["queries"])
    yield from _failed(report["coverage"])
    yield from ("## How this was made", "")
    for heading, pairs in facts(report).items():
        yield from _table((heading, ""), ((escape(name), escape(words)) for name, words in pairs))
    yield from (
        "Confidence is the mean blended probability inside a region; agreement is how far overlapping tiles agree with "
        "each other (intersection over union). Region ids are the same in the overlay, the GeoJSON and this report.",
        "",
        f"**{report['use']}**",
    )


def _answer(report: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Answer", "")
    for query in report["queries"]:
        yield from (f"### {escape(query['query'])}", "")
        yield from (escape(query["answer"]), "")
    if report.get("exemplar") is not None:
        yield from (escape(exemplar_words(report["exemplar"], report["slide"]["slide_id"])), "")
    if far := far_words(report.get("stain")):
        yield from (escape(far), "")
    yield from (escape(coverage_words(report["coverage"])), "")


def _regions(report: Mapping[str, Any]) -> Iterator[str]:
    """The table of each query, and the chain of each region listed."""
    sized = by_size(report["regions"])
    listed = sized[:ROWS]
    if not listed:
        return
    yield from ("## Regions", "")
    if len(listed) < len(sized):
        yield from (
            f"The {len(listed):,} largest of {count_words(len(sized), 'region')} are listed; the other "
            f"{len(sized) - len(listed):,} stand, with all the rest, in the job's regions.geojson and its export csv.",
            "",
        )
    columns = ("Region", "Area", "Place", "Confidence", "Agreement", "Flags", "Id")
    for query in report["queries"]:
        own = [region for region in listed if region["query_index"] == query["query_index"]]
        if own:
            yield from (f"### {escape(query['query'])}", "")
            yield from _table(columns, map(_row, own), "lrlrrll")
            yield from (FLAGS_MEAN, "")
            for region in own:
                yield from _chain(region)


def _row(region: Mapping[str, Any]) -> tuple[str, ...]:
    agreement = "–" if region["agreement"] is None else f"{region['agreement']:.2f}"
    area, confidence = area_words(region["area_um2"]), f"{region['confidence']:.2f}"
    return str(region["label"]), area, region["place"], confidence, agreement, flags(region), f"`{region['region_id']}`"


def _chain(region: Mapping[str, Any]) -> Iterator[str]:
    """What the tile said that a region comes from."""
    yield from (f"#### Region {region['label']}: {area_words(region['area_um2'])}, {region['place']}", "")
    if not region["chain"]:
        yield from ("No tile's reasoning is on record for this region.", "")
        return
    chain = read_chain(region["chain"])
    for name, words in (("Observations", chain.observations), ("Conclusion", chain.conclusion)):
        if words:
            yield from (f"> **{name}:** {_with_marks(words)}", ">")
    key = region["chain_tile"].get("key")
    yield f"> Tile {escape(key)}. {escape(support_words(region))}" if key else "> No tile is on record."
    if evidence := evidence_words(region):
        yield from (">", f"> {escape(evidence)}")
    yield ""


def _with_marks(words: str) -> str:
    """A chain's words with `<SEG>` as code."""
    return escape(words).replace(escape(SEG), f"`{SEG}`")


def _silent(queries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    said = [query for query in queries if query["silent_tiles_said"]]
    if said:
        yield from ("## Where nothing was found", "")
    for query in said:
        again = f", {count_words(query['second_looks'], 'tile')} asked twice" if query["second_looks"] else ""
        silent = count_words(query["tiles_silent"], "tile").capitalize()
        yield from (f"### {escape(query['query'])}", "", f"{silent} said no{again}. Most often:", "")
        yield from _table(
            ("Tiles", "Words"), ((f"{s['tiles']:,}", escape(s["text"])) for s in query["silent_tiles_said"]), "rl"
        )


def _failed(coverage: Mapping[str, Any]) -> Iterator[str]:
    if not coverage["failed"]:
        return
    yield from ("## Tiles that failed", "")
    known = "nothing is known of what lies in them"
    looked = percent_words(coverage["coverage"])
    yield from (f"{count_words(coverage['failed'], 'tile')} failed; {known}. Looked at: {looked} of the tiles.", "")
    reasons = ((f"{entry['tiles']:,}", escape(entry["reason"])) for entry in coverage["failed_reasons"])
    yield from _table(("Tiles", "Reason"), reasons, "rl")
    shown = coverage["failed_tiles"]
    if len(shown) < coverage["failed"]:
        yield from (f"The first {len(shown):,} of them:", "")
    boxes = (", ".join(f"{value:,.0f}" for value in tile["bbox_px0"]).join("[]") for tile in shown)
    rows = ((tile["key"], box, tile["reason"]) for tile, box in zip(shown, boxes, strict=True))
    yield from _table(("Tile", "Frame (level-0 px)", "Reason"), (tuple(map(escape, row)) for row in rows))


def _table(columns: Sequence[str], rows: Iterator[Sequence[str]], align: str = "") -> Iterator[str]:
    """A table; its cells are escaped already. `align` has `l` or `r` for each column."""
    rules = {"l": "---", "r": "---:"}
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join(rules[side] for side in align or 'l' * len(columns))} |"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""
