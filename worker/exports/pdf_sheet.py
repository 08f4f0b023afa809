"""The sheets that a PDF report is laid out on: A4, its own fonts, headings, words, pictures, tables, a footer."""

import io
import logging
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
from fpdf import FPDF, FontFace
from fpdf.enums import TableBordersLayout, XPos, YPos

from worker.pictures import JPEG_QUALITY
from worker.report_parts import plain_line

VENDOR = Path(__file__).parent / "vendor"
FONT = "dejavu"
MARGIN_MM = 18.0
BODY_PT, SMALL_PT, TABLE_PT = 9.5, 8.0, 7.0
LINE = 1.4
"""Of the font's size."""

INK, SOFT, LINES, WARN, WARN_PAPER = (28, 29, 34), (93, 97, 107), 215, (107, 71, 0), (255, 243, 214)
MM_PER_PT = 25.4 / 72
CELL_CHARS = 600
NOTDEF = "\ufffd"
PAGES = "{nb}"
"""Stands for the number of pages until that is known."""

Color = tuple[int, int, int]


class Sheet(FPDF):
    """A document of A4 sheets. Lengths are in mm.

    Args:
        title: of the document.
        footer_text: stands at the foot of every page, before its number.
        made: the date that it carries; the same words give the same bytes.

    Attributes:
        lacking: whether a character had to be left out because the font has no shape for it.
        reversed: whether there was right-to-left script, whose letters stand here from left to right, not joined.
    """

    def __init__(self, title: str, footer_text: str, made: datetime):
        super().__init__(orientation="portrait", unit="mm", format="A4")
        self.lacking = self.reversed = False
        self._complete = False
        self._footer_text = footer_text
        self.add_font(FONT, "", VENDOR / "DejaVuSans.ttf")
        self.add_font(FONT, "B", VENDOR / "DejaVuSans-Bold.ttf")
        self._shapes = self.fonts[FONT].cmap.keys()
        # Only the footer counts pages: what a question says must never be taken for the sign that it puts there.
        self.alias_nb_pages(None)
        self.set_creation_date(made)
        self.set_title(self.clean(title))
        self.set_lang("en")
        self.set_margins(MARGIN_MM, MARGIN_MM, MARGIN_MM)
        self.c_margin = 0  # words begin where pictures do
        self.set_auto_page_break(True, margin=20)
        self.add_page()

    def footer(self) -> None:
        """Research use only, and which page of how many."""
        self.set_y(-13)
        self.set_font(FONT, "", 7.5)
        self.set_text_color(*SOFT)
        self.cell(self.epw - 24, 4, self.clean(self._footer_text))
        self.alias_nb_pages(PAGES)
        self.cell(24, 4, f"{self.page_no()} / {PAGES}", align="R")
        self.alias_nb_pages(PAGES if self._complete else None)

    def save(self, path: Path) -> None:
        """Write the document; nothing can be added to it afterwards."""
        self._complete = True
        logging.getLogger("fontTools").setLevel(logging.WARNING)  # else it tells of every table of every font
        self.output(str(path))

    def clean(self, text: str) -> str:
        """A text as one line of characters that the font has."""
        line = plain_line(text)
        shown = "".join(letter if ord(letter) in self._shapes else NOTDEF for letter in line)
        self.lacking |= shown != line
        self.reversed |= any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in shown)
        return shown

    def words(
        self, text: str, size_pt: float = BODY_PT, style: str = "", color: Color = INK, gap_mm: float = 1.5
    ) -> None:
        """A paragraph.

        Args:
            text: cleaned here.
            size_pt, style, color: of the letters; style is `B` for bold.
            gap_mm: room below.
        """
        self.set_font(FONT, style, size_pt)
        self.set_text_color(*color)
        height = size_pt * MM_PER_PT * LINE
        self.multi_cell(self.epw, height, self.clean(text), align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.ln(gap_mm)

    def heading(self, text: str, level: int = 0, color: Color | None = None, room_mm: float = 30) -> None:
        """A heading, which also stands in the document's outline.

        Args:
            text: cleaned here.
            level: 0 for a section, 1 below.
            color: of a small square before it.
            room_mm: what must fit below it on the page.
        """
        if self.will_page_break(room_mm):
            self.add_page()
        elif level == 0:
            self.ln(4)
        size_pt = (13.0, 10.5)[level]
        self.start_section(self.clean(text)[:120], level)
        if color is not None:
            self.square(color, size_pt)
        self.words(text, size_pt, "B", gap_mm=1.5)

    def square(self, color: Color, size_pt: float) -> None:
        """A square of a query's colour at the left; words that follow stand beside it."""
        side = size_pt * MM_PER_PT * 0.8
        if self.will_page_break(2 * size_pt * MM_PER_PT * LINE):
            self.add_page()
        with self.local_context(fill_color=color):
            self.rect(self.l_margin, self.get_y() + (size_pt * MM_PER_PT * LINE - side) / 2, side, side, "F")
        self.set_x(self.l_margin + side + 1.5)

    def banner(self, text: str) -> None:
        """A warning on a strip of colour."""
        self.set_font(FONT, "B", SMALL_PT)
        with self.local_context(fill_color=WARN_PAPER, text_color=WARN):
            below = {"new_x": XPos.LMARGIN, "new_y": YPos.NEXT}
            self.multi_cell(self.epw, 4, self.clean(text), align="L", fill=True, padding=(1.5, 2), **below)
        self.ln(3)

    def pictures(self, images: Sequence[tuple[np.ndarray, str]], height_mm: float) -> None:
        """Pictures side by side, each with words below.

        Args:
            images: (h, w, 3) uint8 RGB with their words.
            height_mm: none is taller.
        """
        gap = 6.0
        width = (self.epw - gap * (len(images) - 1)) / len(images)
        sizes = [_fit(image.shape, width, height_mm) for image, _ in images]
        tallest = max(height for _, height in sizes)
        if self.will_page_break(tallest + 10):
            self.add_page()
        top, bottom = self.get_y(), self.get_y()
        for index, ((image, words), (w, h)) in enumerate(zip(images, sizes, strict=True)):
            x = self.l_margin + index * (width + gap)
            self.image(_jpeg(image), x=x, y=top, w=w, h=h, alt_text=self.clean(words))
            self.set_xy(x, top + tallest + 1)
            self.set_font(FONT, "", SMALL_PT)
            self.set_text_color(*SOFT)
            self.multi_cell(width, SMALL_PT * MM_PER_PT * LINE, self.clean(words), align="L")
            bottom = max(bottom, self.get_y())
        self.set_xy(self.l_margin, bottom)
        self.ln(2)

    def room(self) -> float:
        """How much of the page is left."""
        return self.h - self.b_margin - self.get_y()

    def grid(
        self,
        heads: Sequence[str],
        rows: Iterable[Sequence[str]],
        widths: Sequence[float],
        aligns: str,
        colors: Iterable[Color] | None = None,
    ) -> None:
        """A table that breaks over pages and repeats its head on each.

        Args:
            heads: of the columns; none when empty.
            rows: cells, cleaned here, and cut after `CELL_CHARS`, since a row cannot break over pages.
            widths: shares of the page's width.
            aligns: `L` or `R` for each column.
            colors: of each row's first cell.
        """
        self.set_font(FONT, "", TABLE_PT)
        self.set_text_color(*INK)
        self.set_draw_color(LINES)
        tints = iter(colors) if colors is not None else None
        with self.table(
            borders_layout=TableBordersLayout.HORIZONTAL_LINES,
            col_widths=tuple(widths),
            text_align=tuple({"L": "LEFT", "R": "RIGHT"}[side] for side in aligns),
            headings_style=FontFace(emphasis="BOLD", color=SOFT),
            line_height=TABLE_PT * MM_PER_PT * 1.45,
            padding=(0.6, 2.4, 0.6, 0),
            first_row_as_headings=bool(heads),
            num_heading_rows=1 if heads else 0,
        ) as table:
            if heads:
                table.row(heads)
            for cells in rows:
                row = table.row()
                for index, text in enumerate(cells):
                    tinted = tints is not None and index == 0
                    row.cell(self.clean(_cut(text)), style=FontFace(color=next(tints)) if tinted else None)
        self.ln(3)


def _cut(text: str) -> str:
    return text if len(text) <= CELL_CHARS else f"{text[:CELL_CHARS]}…"


def _fit(shape: Sequence[int], width_mm: float, height_mm: float) -> tuple[float, float]:
    """The size of a picture within a frame, its aspect kept."""
    scale = min(width_mm / shape[1], height_mm / shape[0])
    return shape[1] * scale, shape[0] * scale


def _jpeg(image: np.ndarray) -> io.BytesIO:
    done, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise ValueError(f"a picture of shape {image.shape} could not be encoded as JPEG")
    return io.BytesIO(encoded.tobytes())
