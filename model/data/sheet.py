"""A contact sheet of a built data set: pictures with the outline of what is asked for, question and chain beneath."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.data.chains import SEG
from model.data.sample import Sample, scene_of

COLUMN_PX, GAP_PX, EDGE_PX, MARGIN_PX = 400, 22, 28, 12
INK, SOFT, FAINT, OUTLINE, HALO, SEG_INK = "#1c1c22", "#5b5b66", "#f4f4f6", (255, 214, 10), (20, 20, 20), "#b0480e"
PALER = 0.3
_TAGS = {"named": "#2f6f9f", "implied": "#4b7f7a", "absent": "#c98b3c", "unknown": "#8d8d93"}


def choose(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """Samples to show: drawn evenly over source and kind of question, each picture once as far as they reach."""
    rng = np.random.default_rng(seed)
    groups: dict[tuple[str, str], list[Sample]] = {}
    for place in rng.permutation(len(samples)):
        groups.setdefault((samples[place].source, samples[place].kind), []).append(samples[place])
    queues = [groups[key] for key in sorted(groups)]
    deepest = max(map(len, queues), default=0)
    order = [queue[depth] for depth in range(deepest) for queue in queues if depth < len(queue)]
    seen: set[str] = set()
    fresh = [one for one in order if not (one.image in seen or seen.add(one.image))]
    return (fresh + [one for one in order if one not in fresh])[:count]


def draw_sheet(samples: Sequence[Sample], folder: Path, columns: int = 4) -> Image.Image:
    """The sheet.

    Args:
        samples: what to show.
        folder: of the built set.
        columns: cells beside each other.

    Returns:
        An RGB picture, every row as high as its highest cell.
    """
    cells = [_cell(sample, folder) for sample in samples]
    columns = max(min(columns, len(cells)), 1)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    width = 2 * EDGE_PX + columns * COLUMN_PX + (columns - 1) * GAP_PX
    sheet = Image.new("RGB", (width, 2 * EDGE_PX + sum(heights) + max(len(rows) - 1, 0) * GAP_PX), "white")
    y = EDGE_PX
    for row, height in zip(rows, heights, strict=True):
        for place, cell in enumerate(row):
            x = EDGE_PX + place * (COLUMN_PX + GAP_PX)
            sheet.paste(FAINT, (x, y, x + COLUMN_PX, y + height))
            sheet.paste(cell, (x, y))
        y += height + GAP_PX
    return sheet


def outlined(image: np.ndarray, masks: Sequence[np.ndarray], edge_px: int = COLUMN_PX) -> np.ndarray:
    """A picture of one size, with outlines that are seen on any stain; what lies outside all of them is paler.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (H, W) bool each.
        edge_px: the longer edge of the result.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    scale = edge_px / max(image.shape[:2])
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    parts = [cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) >= 0.5 for mask in masks]
    if parts:
        outside = ~np.logical_or.reduce(parts)
        shown[outside] = (shown[outside] * (1 - PALER) + 255 * PALER).astype(np.uint8)
    for part in parts:
        lines, _ = cv2.findContours(part.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for colour, thickness in ((HALO, 5), (OUTLINE, 2)):
            cv2.drawContours(shown, lines, -1, colour, thickness, cv2.LINE_AA)
    return shown


def _cell(sample: Sample, folder: Path) -> Image.Image:
    """Picture above, words beneath."""
    scene = scene_of(sample, folder)
    picture = Image.fromarray(outlined(scene.image, [scene.masks[key] for key in sample.targets]))
    lines = _lines(sample)
    cell = Image.new("RGB", (COLUMN_PX, picture.height + 2 * MARGIN_PX + sum(line.height for line in lines)), FAINT)
    cell.paste(picture, ((COLUMN_PX - picture.width) // 2, 0))
    pen, y = ImageDraw.Draw(cell), picture.height + MARGIN_PX
    for line in lines:
        _write(pen, (MARGIN_PX, y), line)
        y += line.height
    return cell


@dataclass(frozen=True)
class _Line:
    """One line of words: its font and ink, and how far down the next one stands."""

    text: str
    font: ImageFont.FreeTypeFont
    ink: str
    height: int


def _lines(sample: Sample) -> list[_Line]:
    """Where a sample is from, what it asks for, the question and its chain, each wrapped."""
    scale = f"{sample.magnification:g}× ({sample.mpp:.3g} µm/px)" if sample.mpp else "scale unknown"
    tag = f"{sample.kind}: {sample.concept or 'never taught'}".replace("_", " ")
    blocks = (
        (f"{sample.source} · {sample.organ} · {scale} · {sample.licence}", _font(12), SOFT, 4),
        (tag, _font(13, bold=True), _TAGS[sample.kind], 6),
        (sample.query, _font(15, bold=True), INK, 8),
        (sample.chain, _font(13), INK, 0),
    )
    lines = []
    for text, font, ink, after in blocks:
        wrapped = _wrapped(text, font)
        height = round(font.size * 1.36)
        lines += [_Line(one, font, ink, height + (after if one is wrapped[-1] else 0)) for one in wrapped]
    return lines


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has every sign that is written here."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines that fit a cell; a word longer than a line is cut."""
    room = COLUMN_PX - 2 * MARGIN_PX
    lines = [""]
    for word in text.split():
        while font.getlength(word) > room:
            fits = next(n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= room)
            lines += [word[:fits]]
            word = word[fits:]
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line] or [""]


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], line: _Line) -> None:
    """One line, its tokens (`<think>`, `</think>`, `<SEG>`) in inks of their own."""
    x, y = place
    for part in re.split(r"(</?think>|<SEG>)", line.text):
        ink = SEG_INK if part == SEG else SOFT if part in ("<think>", "</think>") else line.ink
        pen.text((x, y), part, fill=ink, font=_font(round(line.font.size), bold=True) if part == SEG else line.font)
        x += (_font(round(line.font.size), bold=True) if part == SEG else line.font).getlength(part)
