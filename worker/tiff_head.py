"""What the first page of a TIFF says of its pixels: which reader gets them right, and what none does."""

from dataclasses import dataclass
from pathlib import Path

import tifffile

from worker.errors import SlideUnreadable

INVERTED_GREY, GREY, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
ACCEPTED = "8-bit grey, RGB, RGBA or palette colours are read"


@dataclass(frozen=True)
class TiffHead:
    """The first page of a TIFF.

    Attributes:
        is_ome: whether the file carries OME-XML.
        dtype: of a sample, e.g. `uint8`; sample_bytes: its size, 0 where the page does not say.
        samples: of a pixel.
        photometric: TIFF tag 262.
        orientation: TIFF tag 274; 1 is upright.
    """

    is_ome: bool
    dtype: str
    sample_bytes: int
    samples: int
    photometric: int
    orientation: int

    @property
    def needs_lookup(self) -> bool:
        """Whether a value has to be looked up or inverted to become a colour, which TiffSlide does not do."""
        return self.photometric in (INVERTED_GREY, PALETTE)

    def check(self) -> None:
        """Refuse what would be shown in wrong colours or the wrong way round.

        Raises:
            SlideUnreadable: deeper than 8 bits, CMYK and the like, or to be turned.
        """
        if self.sample_bytes > 1:
            raise SlideUnreadable(f"the TIFF holds {self.samples} samples of {self.dtype}; {ACCEPTED}")
        if self.photometric not in (INVERTED_GREY, GREY, RGB, PALETTE, YCBCR):
            name = tifffile.PHOTOMETRIC(self.photometric).name if self.photometric in _KNOWN else self.photometric
            raise SlideUnreadable(f"the TIFF's colours are {name}; {ACCEPTED}")
        if self.orientation != 1:
            raise SlideUnreadable(
                f"the TIFF is stored turned or mirrored (orientation {self.orientation}); orientation 1 is read"
            )


_KNOWN = frozenset(int(value) for value in tifffile.PHOTOMETRIC)


def read_tiff_head(file: Path) -> TiffHead | None:
    """Look at a TIFF's first page; None where tifffile cannot."""
    try:
        with tifffile.TiffFile(file, _multifile=False) as tiff:
            page = tiff.pages.first
            orientation = page.tags.get(274)
            return TiffHead(
                is_ome=bool(tiff.is_ome),
                dtype=str(page.dtype),
                sample_bytes=page.dtype.itemsize if page.dtype is not None else 0,
                samples=int(page.samplesperpixel),
                photometric=int(page.photometric),
                orientation=int(orientation.value) if orientation is not None else 1,
            )
    except Exception:  # broken bytes lead tifffile into errors of any type; other readers say the last word
        return None
