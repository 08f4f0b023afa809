"""The reliability diagram: how often masks of a confidence are right, beside how often they should be."""

from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIDE_PX, MARGIN_PX = 300, 56
INK, GRID, BAR = (30, 30, 30), (215, 215, 215), (56, 108, 176)


def draw(sides: Mapping[str, Mapping[str, Any]]) -> Image.Image:
    """One panel for each entry of `calibration.describe`, side by side.

    A point stands for a bin: mean confidence to the right, share right upwards; its area grows with the bin's masks.
    The grey diagonal is perfect.
    """
    panel = SIDE_PX + 2 * MARGIN_PX
    picture = Image.new("RGB", (panel * len(sides), panel), "white")
    for number, (name, side) in enumerate(sides.items()):
        _panel(ImageDraw.Draw(picture), number * panel + MARGIN_PX, MARGIN_PX, name, side)
    return picture


def _panel(pen: ImageDraw.ImageDraw, left: int, top: int, name: str, side: Mapping[str, Any]) -> None:
    """Axes, diagonal, points and words of one diagram."""

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * SIDE_PX, top + (1 - y) * SIDE_PX

    font = ImageFont.load_default(13)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        pen.line([place(tick, 0), place(tick, 1)], GRID)
        pen.line([place(0, tick), place(1, tick)], GRID)
        pen.text(place(tick, -0.02), f"{tick:g}", INK, font, anchor="mt")
        pen.text(place(-0.02, tick), f"{tick:g}", INK, font, anchor="rm")
    pen.line([place(0, 0), place(1, 1)], (150, 150, 150), 2)
    most = max(line["n"] for line in side["reliability"])
    for line in side["reliability"]:
        x, y = place(line["confidence"], line["right"])
        radius = 3 + 5 * (line["n"] / most) ** 0.5
        pen.line([place(line["confidence"], line["confidence"]), (x, y)], BAR, 1)
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], BAR)
    pen.text(place(0.5, 1.09), f"{name}: ECE {side['ece']:.3f}, {side['n_masks']} masks", INK, font, anchor="mm")
    pen.text(place(0.5, -0.12), "mean confidence (across), share right (up)", INK, font, anchor="mm")
