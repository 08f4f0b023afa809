"""A slide, whatever its format: size, levels, resolution with its source, and pixels of any frame at any scale."""

import math
from pathlib import Path

import numpy as np
import openslide

from worker.direct_tiff import DirectTiff, open_direct_tiff
from worker.errors import BadRequest, SlideNotFound, SlideReasonError, SlideUnreadable
from worker.ome_tiff import OmeTiffReader
from worker.resample import resample_area
from worker.slide_info import PLAUSIBLE_MPP, describe_slide, is_plausible, true_factor
from worker.slide_readers import OpenSlideReader, PictureReader, Reader, TiffSlideReader, reason
from worker.tiff_head import TiffHead, read_tiff_head
from worker.types import SlideInfo
from worker.zarr_head import MARKS, zarr_mark

WHOLE_READ_PX = 2**28
"""Source pixels a thumbnail may cost (some 5 s of OpenSlide on one core)."""

PIECE_PX = 2**24
"""Source pixels held at once while a large frame is reduced (48 MB as RGB)."""

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ZIP_MAGIC = (b"PK\3\4",)
FOLDERS = "a slide file, a folder with one DICOM series, or an OME-Zarr"


class Slide:
    """An open slide. Reads are thread-safe; use it as a context manager, or call `close`.

    Attributes:
        info: what the slide says of itself; `mpp_x` and `mpp_y` are None where it says nothing.
    """

    def __init__(self, reader: Reader, info: SlideInfo, direct: DirectTiff | None = None):
        self.info = info
        self._reader = reader
        self._direct = direct
        self._open = True

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the file; reads afterwards fail. Closing twice is fine."""
        if not self._open:
            return
        self._open = False
        if self._direct is not None:
            self._direct.close()
        self._reader.close()

    def read_px0(
        self, x_px0: float, y_px0: float, width_px0: float, height_px0: float, out_width: int, out_height: int
    ) -> np.ndarray:
        """Pixels of any frame, from the nearest finer level, reduced by area.

        Args:
            x_px0, y_px0: top-left corner in level-0 pixels; may lie outside the slide.
            width_px0, height_px0: size of the frame in level-0 pixels.
            out_width, out_height: size of the result.

        Returns:
            (out_height, out_width, 3) uint8 RGB; white outside the slide and where the slide is transparent.

        Raises:
            SlideUnreadable: the slide's data there is broken.
        """
        if out_width < 1 or out_height < 1 or width_px0 <= 0 or height_px0 <= 0:
            raise BadRequest("a frame to read must have a positive size")
        step_x, step_y = width_px0 / out_width, height_px0 / out_height
        out = np.full((out_height, out_width, 3), 255, np.uint8)
        # output pixels that touch the slide; the others stay white
        x0, x1 = _touched(x_px0, step_x, out_width, self.info.width_px0)
        y0, y1 = _touched(y_px0, step_y, out_height, self.info.height_px0)
        if x0 >= x1 or y0 >= y1:
            return out
        level = self._level_for(min(step_x, step_y))
        per_piece = PIECE_PX * self._factor(level)[0] * self._factor(level)[1] / (step_x * step_y)
        rows = max(1, min(y1 - y0, int(math.sqrt(per_piece))))
        cols = max(1, min(x1 - x0, int(per_piece / rows)))
        for row in range(y0, y1, rows):
            for col in range(x0, x1, cols):
                h, w = min(rows, y1 - row), min(cols, x1 - col)
                frame = (x_px0 + col * step_x, y_px0 + row * step_y, w * step_x, h * step_y)
                out[row : row + h, col : col + w] = self._read_piece(level, frame, w, h)
        return out

    def thumbnail(self, max_px: int) -> np.ndarray:
        """The whole slide in one small picture.

        A huge slide without a pyramid is sampled: no more than about `WHOLE_READ_PX` pixels are decoded.

        Args:
            max_px: upper bound of the long side; a smaller slide is not enlarged.

        Returns:
            (h, w, 3) uint8 RGB in the slide's aspect, its frame exactly the slide's level 0.
        """
        width, height = self.info.width_px0, self.info.height_px0
        scale = min(1.0, max_px / max(width, height))
        out_width, out_height = max(1, round(width * scale)), max(1, round(height * scale))
        step_x, step_y = width / out_width, height / out_height
        level_w, level_h = self.info.level_dimensions[self._level_for(min(step_x, step_y))]
        skip = math.ceil(math.sqrt(level_w * level_h / WHOLE_READ_PX))
        if skip > 1:
            return self._sampled(out_width, out_height, step_x, step_y, skip)
        return self.read_px0(0, 0, width, height, out_width, out_height)

    def _sampled(self, out_width: int, out_height: int, step_x: float, step_y: float, skip: int) -> np.ndarray:
        """A thumbnail of which one cell in skip x skip is read, and stands for its neighbours: (h, w, 3) uint8."""
        # a cell is about as large as a tile of the file, so that most tiles are never decoded
        cell = max(1, round(256 / min(step_x, step_y)))
        group = cell * skip
        out = np.empty((out_height, out_width, 3), np.uint8)
        for top in range(0, out_height, group):
            for left in range(0, out_width, group):
                row, col = top + (group - cell) // 2, left + (group - cell) // 2
                frame = (col * step_x, row * step_y, cell * step_x, cell * step_y)
                part = self.read_px0(*frame, cell, cell).repeat(skip, axis=0).repeat(skip, axis=1)
                target = out[top : top + group, left : left + group]
                target[:] = part[: target.shape[0], : target.shape[1]]
        return out

    def _factor(self, level: int) -> tuple[float, float]:
        """Level-0 pixels per pixel of a level, (x, y)."""
        width, height = self.info.level_dimensions[level]
        return true_factor(self.info.width_px0, width), true_factor(self.info.height_px0, height)

    def _level_for(self, step: float) -> int:
        """The coarsest level that is still at least as fine as one output pixel."""
        best = 0
        for level in range(len(self.info.level_dimensions)):
            if max(self._factor(level)) <= step * 1.001:
                best = level
        return best

    def _read_piece(self, level: int, frame: tuple[float, float, float, float], w: int, h: int) -> np.ndarray:
        """One frame of level 0 that touches the slide; read with a margin, padded white, then resampled."""
        factor_x, factor_y = self._factor(level)
        x, y, width, height = frame[0] / factor_x, frame[1] / factor_y, frame[2] / factor_x, frame[3] / factor_y
        level_w, level_h = self.info.level_dimensions[level]
        # one pixel of margin serves the linear interpolation where the frame has to grow
        left, top = math.floor(x + 1e-6) - 1, math.floor(y + 1e-6) - 1
        right, bottom = math.ceil(x + width - 1e-6) + 1, math.ceil(y + height - 1e-6) + 1
        x0, y0, x1, y1 = max(0, left), max(0, top), min(level_w, right), min(level_h, bottom)
        source = np.full((bottom - top, right - left, 3), 255, np.uint8)
        if x1 > x0 and y1 > y0:
            inside = self._read_level(level, x0, y0, x1 - x0, y1 - y0)
            source[y0 - top : y1 - top, x0 - left : x1 - left] = inside
        return resample_area(source, x - left, y - top, width, height, w, h)

    def _read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        if self._direct is not None and self._direct.serves(level):
            return self._direct.read_level(level, x, y, width, height)
        return self._reader.read_level(level, x, y, width, height)


def open_slide(path: str | Path, mpp_override: float | None = None) -> Slide:
    """Open whatever holds a slide.

    Args:
        path: an SVS, TIFF, NDPI, MRXS, DICOM … file, a folder with one DICOM series, an OME-Zarr, or a plain
            picture (docs/slides.md).
        mpp_override: µm per level-0 pixel to use instead of what the slide says.

    Returns:
        An open slide; its resolution may still be unknown (None).

    Raises:
        SlideNotFound: nothing is at `path`.
        SlideUnreadable: no reader can open it.
        BadRequest: `mpp_override` is not a positive number.
    """
    path = Path(path)
    if mpp_override is not None and not is_plausible(mpp_override):
        raise BadRequest(
            f"mpp_override must be between {PLAUSIBLE_MPP[0]} and {PLAUSIBLE_MPP[1]} µm/px", field="mpp_override"
        )
    if not path.exists():
        raise SlideNotFound(f"no such slide; give {FOLDERS}", field="slide")
    if not (path.is_dir() or path.is_file()):
        raise SlideUnreadable(f"neither a file nor a folder; give {FOLDERS}", field="slide")
    try:
        file = _member(path) if path.is_dir() else path
        if file.stat().st_size == 0:
            raise SlideUnreadable("the file is empty; a slide (SVS, TIFF, DICOM …) or a picture is read", field="slide")
        is_zarr = file.name in MARKS or _starts_with(file, ZIP_MAGIC)
        reader = _open_ome_zarr(path) if is_zarr else _open_reader(file)
    except OSError as error:
        if isinstance(error, SlideReasonError):
            raise
        raise SlideUnreadable(f"the slide cannot be read: {reason(error, path)}", field="slide") from error
    except SlideUnreadable as error:
        error.field = error.field or "slide"
        raise
    try:
        info = describe_slide(reader, path, file, mpp_override)
        direct = open_direct_tiff(file, reader) if isinstance(reader, OpenSlideReader) else None
        return Slide(reader, info, direct)
    except BaseException:
        reader.close()
        raise


def _open_ome_zarr(path: Path) -> Reader:
    from worker.ome_zarr_slide import OmeZarrReader  # Zarr is slow to import, and most slides are none

    return OmeZarrReader(path)


def _open_reader(file: Path) -> Reader:
    """The first reader that takes the file and gets it right."""
    is_tiff = _starts_with(file, TIFF_MAGIC)
    try:
        reader = OpenSlideReader(file)
        if reader.vendor != "generic-tiff":
            return reader
    except openslide.OpenSlideUnsupportedFormatError:
        reader = None
    except openslide.OpenSlideError as error:
        if not is_tiff:
            raise SlideUnreadable(f"the slide is broken: {reason(error, file)}") from error
        reader = None
    if not is_tiff:
        return reader or PictureReader(file)
    try:
        return _open_tiff(file, reader, read_tiff_head(file))
    except BaseException:
        if reader is not None:
            reader.close()
        raise


def _open_tiff(file: Path, plain: OpenSlideReader | None, head: TiffHead | None) -> Reader:
    """A TIFF of no scanner's own dialect; `plain` is OpenSlide's reader of it, if there is one."""
    if head is not None:
        head.check()
        if head.is_ome:
            ome = _try(OmeTiffReader, file)
            if ome is not None:
                if plain is not None:
                    plain.close()
                return ome
    if plain is not None:
        return plain
    # TiffSlide would follow OME-XML into other files
    unfit = head is not None and (head.needs_lookup or head.is_ome)
    return (None if unfit else _try(TiffSlideReader, file)) or PictureReader(file)


def _try(kind: type[OmeTiffReader] | type[TiffSlideReader], file: Path) -> Reader | None:
    """The file in one kind of reader; None where the library stumbles over it."""
    try:
        return kind(file)
    except SlideUnreadable:
        raise
    except Exception:  # tifffile raises whatever the bytes lead it into
        return None


def _starts_with(file: Path, magic: tuple[bytes, ...]) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) in magic


def _member(folder: Path) -> Path:
    """The file that stands for a folder: a Zarr's metadata, or one of its only DICOM series."""
    return zarr_mark(folder) or _dicom_member(folder)


def _dicom_member(folder: Path) -> Path:
    """One file of the folder's only DICOM series; OpenSlide finds the others beside it."""
    series: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if not file.is_file() or not _is_dicom(file):
            continue
        try:
            with openslide.OpenSlide(str(file)) as slide:
                series.setdefault(slide.properties.get("dicom.SeriesInstanceUID", ""), file)
        except openslide.OpenSlideError:
            continue
    if not series:
        raise SlideUnreadable(f"the folder holds no DICOM slide and no Zarr; give {FOLDERS}")
    if len(series) > 1:
        raise SlideUnreadable(f"the folder holds {len(series)} DICOM series; give one of the files instead")
    return next(iter(series.values()))


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _touched(start: float, step: float, count: int, limit: float) -> tuple[int, int]:
    """First and one past the last output pixel that touches [0, limit)."""
    first = math.floor(-start / step + 1e-9)
    last = math.ceil((limit - start) / step - 1e-9)
    return max(0, min(count, first)), max(0, min(count, last))
