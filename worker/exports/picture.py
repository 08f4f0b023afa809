"""The slide with all regions as one PNG to look at: outlines, scale bar, legend, and what it may be used for."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from worker.colors import query_color
from worker.exports.job_results import JobResults
from worker.exports.message import PRODUCT, clean_text
from worker.pictures import Canvas, LabelFrame, draw_frame, draw_labels, draw_markers
from worker.pyramid import levels_of, open_level
from worker.wording import area_words, count_words, percent_words

MAX_PX = 2048
MIN_WIDTH_PX = 640
"""Narrower pictures get white at their sides, so that the legend can be read."""

FILL = 0.22
LINE_PX = 2
STRIPE_PX = 12
CROWD = 1000
"""Beyond so many regions lines are thin, and small regions are not ringed: they would hide the slide."""
INK, PAPER = (20, 20, 24), (255, 255, 255)
PLATE = 0.75
"""Opacity of what is under words."""

BAR_SHARE = 0.25
"""The scale bar is no longer than this part of the picture's width."""

LINES = 3
"""Of the legend that one question may take; more ends in `…`."""

WEIGHT = 450
"""Of the letters; 400 is regular."""

USE = "Research use only"


def write_png(results: JobResults, path: Path, max_px: int = MAX_PX) -> None:
    """Write the picture of the slide, cropped to its scanned area where the slide states one.

    Args:
        results: of a finished job; the overlay's reference picture is what is drawn upon.
        path: the file, RGB; its texts (`iTXt`) name job, slide id, µm/px and use.
        max_px: the finest level of the reference is taken whose long side is no longer; it is never enlarged. The
            legend below comes on top.
    """
    canvas, mpp = _reference(results, max_px)
    frame = LabelFrame(results.overlay, (results.plan.scale_x, results.plan.scale_y), len(levels_of(results.plan)))
    indices = [query["query_index"] for query in results.report["queries"]]
    crowded = len(results.report["regions"]) > CROWD
    line_px = 1 if crowded else LINE_PX
    for index in indices:
        draw_labels(canvas, frame, index, fill=FILL, width=line_px)
    _stripe_common_outlines(canvas, frame, indices, line_px)
    if not crowded:
        draw_markers(canvas, results.report["regions"])
    for tile in results.report["coverage"]["failed_tiles"]:
        draw_frame(canvas, tile["bbox_px0"])
    _draw_scale_bar(canvas.image, mpp)
    _draw_plate(canvas.image, USE, top=True)
    image = _with_legend(canvas.image, list(legend_lines(results, mpp)))
    texts = PngInfo()
    for name, words in (("Software", PRODUCT), ("Comment", results.report["use"])):
        texts.add_itxt(name, words)
    slide_id = clean_text(results.report["slide"]["slide_id"])
    texts.add_itxt("Source", f"job {results.job_id}, slide {slide_id}, {mpp:.6g} µm/px")
    Image.fromarray(image).save(path, "PNG", pnginfo=texts)


def _reference(results: JobResults, max_px: int) -> tuple[Canvas, float]:
    """The reference picture at the level that fits, to draw upon, and its µm/px."""
    plan, slide = results.plan, results.slide
    x, y, width, height = slide.bounds_px0 or (0, 0, slide.width_px0, slide.height_px0)
    attributes = json.loads((results.overlay / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    levels = attributes["slidereason"]["reference_levels"]
    sides = {level: max(width / plan.scale_x, height / plan.scale_y) / 2**level for level in levels}
    level = next((level for level in levels if round(sides[level]) <= max_px), levels[-1])
    array = open_level(results.overlay, "", level)
    fx, fy = plan.scale_x * 2**level, plan.scale_y * 2**level
    left, top = max(0, int(x / fx)), max(0, int(y / fy))
    right, bottom = min(array.shape[2], -int(-(x + width) // fx)), min(array.shape[1], -int(-(y + height) // fy))
    image = np.ascontiguousarray(np.moveaxis(array[:, top:bottom, left:right], 0, 2))
    return Canvas(image, (left * fx, top * fy, right * fx, bottom * fy)), plan.mpp * 2**level


def _stripe_common_outlines(canvas: Canvas, frame: LabelFrame, indices: list[int], line_px: int) -> None:
    """Where several questions found the same, let their colours take turns along the outline, so that none hides."""
    height, width = canvas.image.shape[:2]
    outlines = []
    for index in indices:
        inside = (frame.read(index, canvas.box_px0, width, height) > 0).astype(np.uint8)
        contours = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
        outlines.append(cv2.drawContours(np.zeros_like(inside), contours, -1, 1, line_px))
    count = np.sum(outlines, axis=0)
    y, x = np.nonzero(count > 1)
    turn = (x + y) // STRIPE_PX % count[y, x]
    for index, outline in zip(indices, outlines, strict=True):
        mine = outline[y, x] > 0
        shown = mine & (turn == 0)
        canvas.image[y[shown], x[shown]] = query_color(index)
        turn -= mine


def _text_size(width: int) -> int:
    """Height of letters in pixels that suits a picture of this width."""
    return int(np.clip(round(width / 60), 13, 24))


def nice_length_um(max_um: float) -> float:
    """The longest of 1, 2 and 5 times a power of ten that is no longer than `max_um`."""
    power = 10.0 ** np.floor(np.log10(max_um))  # one too many where the logarithm is rounded up: hence the half
    return float(max(step * power for step in (0.5, 1, 2, 5) if step * power <= max_um))


def length_words(um: float) -> str:
    """A length with its unit: mm from one on, else µm."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def _draw_scale_bar(image: np.ndarray, mpp: float) -> None:
    """A bar of a round length with its words, in the lower left."""
    length_um = nice_length_um(image.shape[1] * BAR_SHARE * mpp)
    _draw_plate(image, length_words(length_um), top=False, bar=round(length_um / mpp))


def _draw_plate(image: np.ndarray, words: str, top: bool, bar: int = 0) -> None:
    """Words on pale ground in a corner on the left, over a bar of a length if there is one."""
    height, width = image.shape[:2]
    size = _text_size(width)
    while size > 7 and _width(words, size) > width * 0.9:
        size -= 1
    pad = max(2, size // 2)
    plate_width = min(width, max(_width(words, size), bar) + 2 * pad)
    plate_height = min(height, size + 2 * pad + (pad + size // 4 if bar else 0))
    y = 0 if top else height - plate_height
    plate = image[y : y + plate_height, :plate_width]
    plate[:] = plate * (1 - PLATE) + np.array(PAPER) * PLATE
    write_words(image, words, (pad, y + pad + size * 7 // 8), size)
    if bar:
        image[height - pad - size // 4 : height - pad, pad : pad + bar] = INK


def legend_lines(results: JobResults, mpp: float) -> Iterator[tuple[int | None, str]]:
    """The lines of the legend.

    Args:
        results: of a finished job.
        mpp: µm/px of the picture.

    Yields:
        The index of the question whose colour stands before the line, or None, and words.
    """
    report = results.report
    coverage = report["coverage"]
    for query in report["queries"]:
        found = f"{count_words(query['regions'], 'region')}, {area_words(query['area_um2'])}"
        nothing = "not found" if coverage["looked_at"] else "nothing was looked at"
        yield query["query_index"], f"{found if query['found'] else nothing} – {_line(query['query'])}"
    looked = f"{percent_words(coverage['coverage'])} of {count_words(coverage['tiles'], 'tile')} looked at"
    if coverage["failed"]:
        looked += f", {coverage['failed']:,} failed (dashed)"
    if coverage["skipped"]:
        looked += f"; {coverage['skipped']:,} left out (glass, or outside the region of interest)"
    model = f"model {report['model']['name']} {report['model'].get('revision', '')}"
    yield None, _line(f"Slide {report['slide']['slide_id']}, shown at {mpp:.4g} µm/px; {model}. {looked}.")
    yield None, report["use"]


def _line(text: str) -> str:
    return clean_text(text).replace("\n", " ")


def _with_legend(image: np.ndarray, lines: list[tuple[int | None, str]]) -> np.ndarray:
    """The picture, widened with white if it is narrow, over its legend."""
    width = max(image.shape[1], MIN_WIDTH_PX)
    size = _text_size(width)
    step, indent = round(size * 1.5), size * 2
    wrapped = [(index, wrap_words(words, size, width - indent - size)) for index, words in lines]
    legend = np.full((step * sum(len(rows) for _, rows in wrapped) + size, width, 3), 255, np.uint8)
    y = size // 2
    for index, rows in wrapped:
        if index is not None:
            _draw_swatch(legend, index, y + step // 2, size)
        for row in rows:
            write_words(legend, row, (indent, y + step // 2 + size * 3 // 8), size)
            y += step
    side = (width - image.shape[1]) // 2
    sides = ((0, 0), (side, width - image.shape[1] - side), (0, 0))
    return np.vstack([np.pad(image, sides, constant_values=255), legend])


def _draw_swatch(legend: np.ndarray, query_index: int, y: int, size: int) -> None:
    """A square that looks as the regions of a question do, centred on y."""
    color = query_color(query_index)
    corner, opposite = (size // 2, y - size // 2), (size // 2 + size, y + size // 2)
    tint = tuple(round(255 * (1 - 2 * FILL) + 2 * FILL * value) for value in color)
    cv2.rectangle(legend, corner, opposite, tint, -1)
    cv2.rectangle(legend, corner, opposite, INK, 4)
    cv2.rectangle(legend, corner, opposite, color, 2)


def wrap_words(words: str, size: int, width: int) -> list[str]:
    """Break words into lines.

    Args:
        words: one line, of any length.
        size: height of the letters in pixels.
        width: of a line in pixels.

    Returns:
        At most `LINES` lines, broken at spaces, or within a word that fills a line by itself; `…` where words are left
        out.
    """
    rows = [""]
    for word in words.split(" "):
        longer = f"{rows[-1]} {word}".strip()
        if _width(longer, size) <= width:
            rows[-1] = longer
            continue
        if rows[-1]:
            rows.append("")
        for character in word:
            if _width(rows[-1] + character, size) > width:
                rows.append("")
            rows[-1] += character
        if len(rows) > LINES:
            break
    if len(rows) > LINES:
        last = rows[LINES - 1]
        while last and _width(f"{last} …", size) > width:
            last = last[:-1]
        return [*rows[: LINES - 1], f"{last} …"]
    return rows


def _font() -> cv2.FontFace:
    """The sans serif that OpenCV carries within; it falls back on another of its own for Greek, CJK and Arabic."""
    return cv2.FontFace("sans")


def _width(words: str, size: int) -> int:
    """Width of words in pixels."""
    return cv2.getTextSize((1, 1), words, (0, 0), _font(), size, WEIGHT)[2]


def write_words(image: np.ndarray, words: str, place: tuple[int, int], size: int) -> None:
    """Write words upon a picture.

    Args:
        image: (h, w, 3) uint8 RGB.
        words: one line.
        place: (x, y) where the baseline begins.
        size: height of the letters in pixels.
    """
    cv2.putText(image, words, place, INK, _font(), size, WEIGHT)
