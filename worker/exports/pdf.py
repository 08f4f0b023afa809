"""The report as a PDF to print or to file: answer, pictures, regions with their chains, coverage, what made it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.answers import far_words
from worker.colors import query_color
from worker.exports.job_results import JobResults
from worker.exports.pdf_sheet import NOTDEF, SMALL_PT, SOFT, TABLE_PT, Sheet
from worker.exports.source_slide import Reference, slide_of
from worker.pictures import LabelFrame
from worker.report_parts import (
    FLAGS_MEAN,
    by_size,
    coverage_words,
    evidence_words,
    facts,
    featured_regions,
    flags,
    support_words,
)
from worker.report_pictures import RINGS, Pixels, draw_overview, draw_region, draw_tile, label_frame
from worker.wording import SEG, area_words, count_words, exemplar_words, percent_words, read_chain

ROWS = 500
"""The largest regions that stand in the table."""

OVERVIEW_MM = (90, 150)
PICTURE_MM = 58
TITLE_CHARS = 120
Report = Mapping[str, Any]


def write_pdf(results: JobResults, path: Path) -> None:
    """Write the report as PDF.

    The overview is drawn on the overlay's own picture of the slide, regions and tiles on the slide itself. Where that
    is away or was changed, the file says so and shows none.

    Args:
        results: of a finished job.
        path: the file. The same results give the same bytes while the slide is there. Of many regions the largest are
            shown, and the file says how many more there are and where.
    """
    report = results.report
    sized = by_size(report["regions"])
    named = featured_regions(sized, report["queries"])
    frame = label_frame(report, results.overlay)
    sheet = Sheet(_title(report), f"{report['use']} Job {results.job_id}", results.finished)
    _head(sheet, results)
    _answer(sheet, report)
    overview = draw_overview(report, frame, Reference(results.overlay), sized, named)
    _overview(sheet, report, overview.image)
    with slide_of(results) as (slide, why):
        _featured(sheet, report, named, frame, slide, why)
    _table(sheet, report, sized)
    _silent(sheet, report["queries"])
    _failed(sheet, report["coverage"])
    _facts(sheet, report)
    sheet.save(path)


def _title(report: Report) -> str:
    questions = report["queries"]
    return questions[0]["query"] if len(questions) == 1 else f"{len(questions)} questions to one slide"


def _head(sheet: Sheet, results: JobResults) -> None:
    sheet.banner(f"{results.report['use']} Made by a model, reviewed by nobody.")
    sheet.words("SlideReason report", SMALL_PT, color=SOFT, gap_mm=1)
    title = _title(results.report)
    sheet.words(title, 17 if len(title) <= TITLE_CHARS else 11, "B", gap_mm=1.5)
    finished = f"{results.finished:%Y-%m-%d %H:%M} UTC"
    slide = results.report["slide"]["slide_id"]
    sheet.words(f"Slide {slide} · job {results.job_id} · finished {finished}", SMALL_PT, color=SOFT, gap_mm=3)


def _answer(sheet: Sheet, report: Report) -> None:
    sheet.heading("Answer")
    for query in report["queries"]:
        if len(report["queries"]) > 1:
            sheet.heading(_question(query), 1, query_color(query["query_index"]), 20)
        sheet.words(query["answer"], 10.5)
    if report.get("exemplar") is not None:
        sheet.words(exemplar_words(report["exemplar"], report["slide"]["slide_id"]))
    if far := far_words(report.get("stain")):
        sheet.words(far, style="B")
    sheet.words(coverage_words(report["coverage"]), color=SOFT)


def _question(query: Mapping[str, Any]) -> str:
    return f"Q{query['query_index'] + 1}: {query['query']}"


def _overview(sheet: Sheet, report: Report, image: Any) -> None:
    sheet.heading("The slide", room_mm=OVERVIEW_MM[0] + 25)
    left = " Of these only the largest are ringed." if len(report["regions"]) > RINGS else ""
    failed = " Dashed red: tiles that failed." if report["coverage"]["failed"] else ""
    words = f"Numbers name the regions shown below; a ring marks a region too small to outline at this size.{left}"
    least, most = OVERVIEW_MM
    sheet.pictures([(image, words + failed)], min(most, max(least, sheet.room() - 15 - 5 * len(report["queries"]))))
    if len(report["queries"]) > 1:
        for query in report["queries"]:
            sheet.square(query_color(query["query_index"]), SMALL_PT)
            sheet.words(_question(query), SMALL_PT, gap_mm=0.3)


def _featured(
    sheet: Sheet, report: Report, named: Sequence[Mapping], frame: LabelFrame, slide: Pixels | None, why: str
) -> None:
    """The largest regions of each question with what was said of them."""
    if not named:
        return
    sheet.heading("The largest regions and the reasoning behind them", room_mm=PICTURE_MM + 45 if slide else 40)
    if slide is None:
        sheet.words(f"{why}; so regions and tiles are not pictured here.", color=SOFT)
    for region in named:
        several = f"Q{region['query_index'] + 1} · " if len(report["queries"]) > 1 else ""
        color = query_color(region["query_index"])
        sheet.heading(f"{several}Region {region['label']}", 1, color, PICTURE_MM + 30 if slide else 30)
        sheet.words(_measures(region), SMALL_PT, color=SOFT)
        if slide is not None:
            _pictures(sheet, region, frame, slide)
        _chain(sheet, region)


def _measures(region: Mapping[str, Any]) -> str:
    agreement = "" if region["agreement"] is None else f" · agreement {region['agreement']:.2f}"
    x, y = region["centroid_px0"]
    return (
        f"{area_words(region['area_um2'])} · {region['place']} · confidence {region['confidence']:.2f}{agreement} · "
        f"perimeter {region['perimeter_um']:,.0f} µm · centroid {x:.0f}, {y:.0f} px · id {region['region_id']}"
    )


def _pictures(sheet: Sheet, region: Mapping[str, Any], frame: LabelFrame, slide: Pixels) -> None:
    tile = draw_tile(region, frame, slide)
    dashed = " Dashed: the tile whose reasoning is quoted." if tile else ""
    images = [(draw_region(region, frame, slide).image, f"The region, outlined.{dashed}")]
    if tile is not None:
        words = f"Tile {region['chain_tile']['key']}: words for places speak of this picture, not of the slide."
        images.append((tile.image, words))
    sheet.pictures(images, PICTURE_MM)


def _chain(sheet: Sheet, region: Mapping[str, Any]) -> None:
    """What the tile said that a region comes from."""
    if not region["chain"]:
        sheet.words("No tile's reasoning is on record for this region.", color=SOFT)
        return
    chain = read_chain(region["chain"])
    if chain.observations:
        sheet.words(f"Observations: {chain.observations}", gap_mm=1)
    if chain.conclusion:
        sheet.words(f"Conclusion: {chain.conclusion}", style="B", gap_mm=1)
    pointed = f"At {SEG} the model pointed: the outline. " if SEG in region["chain"] else ""
    words = f"{pointed}{support_words(region)} {evidence_words(region)}".strip()
    sheet.words(words, SMALL_PT, color=SOFT, gap_mm=4)


def _table(sheet: Sheet, report: Report, sized: Sequence[Mapping]) -> None:
    shown = sized[:ROWS]
    if not shown:
        return
    left = len(sized) - len(shown)
    all_of_them = f"The {len(shown):,} largest of {count_words(len(sized), 'region')}"
    sheet.heading(all_of_them if left else "All regions")
    if left:
        where = "they stand, with all outlines, in the job's regions.geojson and its export csv"
        sheet.words(f"{count_words(left, 'smaller region')} are left out here; {where}.", color=SOFT)
    several = len(report["queries"]) > 1
    heads = ["Region", *(["Q"] if several else []), "Area", "Place", "Confidence", "Agree", "Tiles", "Flags", "Id"]
    widths = [13, *([7] if several else []), 19, 18, 18, 12, 11, 20, 56]
    colors = (query_color(region["query_index"]) for region in shown)
    sheet.grid(heads, (_row(region, several) for region in shown), widths, f"L{'L' * several}RLRRRLL", colors)
    tiles = "Tiles: those that made the region / those that saw it and stayed silent."
    sheet.words(f"{tiles} {FLAGS_MEAN}", TABLE_PT, color=SOFT)


def _row(region: Mapping[str, Any], several: bool) -> Iterator[str]:
    yield f"■ {region['label']}"
    if several:
        yield f"Q{region['query_index'] + 1}"
    yield area_words(region["area_um2"])
    yield region["place"]
    yield f"{region['confidence']:.2f}"
    yield "–" if region["agreement"] is None else f"{region['agreement']:.2f}"
    yield f"{len(region['support']) + bool(region['chain_tile'])} / {len(region['dissent'])}"
    yield flags(region)
    yield region["region_id"]


def _silent(sheet: Sheet, queries: Sequence[Mapping]) -> None:
    said = [query for query in queries if query["silent_tiles_said"]]
    if not said:
        return
    sheet.heading("Where nothing was found")
    for query in said:
        again = f", {count_words(query['second_looks'], 'tile')} asked twice" if query["second_looks"] else ""
        if len(queries) > 1:
            sheet.heading(_question(query), 1, query_color(query["query_index"]), 20)
        silent = count_words(query["tiles_silent"], "tile").capitalize()
        sheet.words(f"{silent} said no{again}. Most often:", SMALL_PT, color=SOFT)
        rows = [(f"{entry['tiles']:,}", entry["text"]) for entry in query["silent_tiles_said"]]
        sheet.grid((), rows, (16, 158), "RL")


def _failed(sheet: Sheet, coverage: Mapping[str, Any]) -> None:
    if not coverage["failed"]:
        return
    sheet.heading("Tiles that failed")
    failed, shown = count_words(coverage["failed"], "tile"), coverage["failed_tiles"]
    looked = percent_words(coverage["coverage"])
    sheet.words(f"{failed} failed; nothing is known of what lies in them. Looked at: {looked} of the tiles.")
    reasons = [(f"{entry['tiles']:,}", entry["reason"]) for entry in coverage["failed_reasons"]]
    sheet.grid(("Tiles", "Reason"), reasons, (16, 158), "RL")
    if len(shown) < coverage["failed"]:
        sheet.words(f"The first {len(shown):,} of them:", SMALL_PT, color=SOFT)
    boxes = (", ".join(f"{value:,.0f}" for value in tile["bbox_px0"]) for tile in shown)
    rows = [(tile["key"], box, tile["reason"]) for tile, box in zip(shown, boxes, strict=True)]
    sheet.grid(("Tile", "Frame (level-0 px)", "Reason"), rows, (20, 54, 100), "LLL")


def _facts(sheet: Sheet, report: Report) -> None:
    """Coverage, slide with its hash, parameters, and the model with its revision."""
    sheet.heading("How this was made", room_mm=60)
    for title, pairs in facts(report).items():
        sheet.heading(title, 1, room_mm=30)
        sheet.grid((), pairs, (44, 130), "LL")
    sheet.words(
        "Confidence is the mean blended probability inside a region; agreement is how far overlapping tiles agree with "
        "each other (intersection over union). Areas count overlay pixels and are exact. Region ids are the same in "
        "the overlay, the GeoJSON and this file.",
        SMALL_PT,
        color=SOFT,
    )
    words = []
    if sheet.lacking:
        words.append(f"Characters that this file's font lacks are shown as {NOTDEF}.")
    if sheet.reversed:
        words.append("The letters of right-to-left script stand here from left to right, and are not joined.")
    if words:
        sheet.words(" ".join((*words, "The report as JSON has all words as they were written.")), SMALL_PT, color=SOFT)
