"""What can open a slide: OpenSlide, TiffSlide and plain pictures, behind one small shape.

A reader knows its levels and reads whole pixels of one of them; frames, mpp and resampling belong to `worker.slides`.
"""

import threading
from pathlib import Path
from typing import Protocol

import numpy as np
import openslide

from worker.errors import SlideUnreadable

MAX_PLAIN_PX = 170_000_000
"""Largest picture, and largest single strip or tile, that is decoded in one piece (0.5 GB as RGB)."""

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "JPEG2000")
"""Of Pillow's many decoders, those that are let near a file."""

PICTURE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")

OPENSLIDE_CACHE_BYTES = 64 * 2**20


class Reader(Protocol):
    """Levels of a slide, finest first, in whole pixels.

    Attributes:
        level_dimensions: (width, height) of each level.
        vendor: short name of the format.
        properties: what the format states, as text; never leaves `worker.slides`, for it may name a patient.
    """

    level_dimensions: tuple[tuple[int, int], ...]
    vendor: str
    properties: dict[str, str]

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of one level; the rectangle lies inside the level.

        Returns:
            (height, width, 3) uint8 RGB, transparency over white.

        Raises:
            SlideUnreadable: the file's data there is broken.
        """
        ...

    def close(self) -> None:
        """Free the file."""
        ...


class OpenSlideReader:
    """Everything OpenSlide knows. Thread-safe."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._slide = self._open()
        self.level_dimensions = tuple((int(w), int(h)) for w, h in self._slide.level_dimensions)
        self._downsamples = self._slide.level_downsamples
        self.properties = dict(self._slide.properties)
        self.vendor = self.properties.get("openslide.vendor", "unknown")
        self._check_tiles()

    def _open(self) -> openslide.OpenSlide:
        slide = openslide.OpenSlide(str(self._path))
        slide.set_cache(openslide.OpenSlideCache(OPENSLIDE_CACHE_BYTES))
        return slide

    def _check_tiles(self) -> None:
        for level in range(len(self.level_dimensions)):
            edges = [self.properties.get(f"openslide.level[{level}].tile-{edge}", "0") for edge in ("width", "height")]
            if int(edges[0]) * int(edges[1]) > MAX_PLAIN_PX:
                raise SlideUnreadable(
                    f"level {level} has tiles of {edges[0]} x {edges[1]} px; at most {MAX_PLAIN_PX} px each are read"
                )

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        factor = self._downsamples[level]
        slide = self._slide
        try:
            rgba = np.asarray(slide.read_region((round(x * factor), round(y * factor)), level, (width, height)))
        except openslide.OpenSlideError as error:
            self._reopen(slide)
            raise SlideUnreadable(
                f"the slide's data is broken at level {level}, ({x}, {y}): {reason(error, self._path)}"
            ) from error
        return composite_on_white(rgba)

    def whole_position(self, level: int, x: int, y: int) -> tuple[int, int]:
        """The given pixel of a level if OpenSlide can address it exactly, else the origin."""
        factor = self._downsamples[level]
        exact = all(abs(value * factor - round(value * factor)) < 1e-9 for value in (x, y))
        return (x, y) if exact else (0, 0)

    def _reopen(self, broken: openslide.OpenSlide) -> None:
        # One failed read turns an OpenSlide handle useless for good; the next tile deserves a fresh one.
        with self._lock:
            if self._slide is broken:
                self._slide = self._open()

    def close(self) -> None:
        self._slide.close()


class TiffSlideReader:
    """TIFF dialects that OpenSlide refuses: striped files, QPTIFF."""

    def __init__(self, path: Path):
        from tiffslide import TiffSlide

        self._path = path
        self._lock = threading.Lock()
        self._slide = TiffSlide(str(path))
        try:
            self.level_dimensions = tuple((int(w), int(h)) for w, h in self._slide.level_dimensions)
            self._downsamples = self._slide.level_downsamples
            self.properties = {str(k): str(v) for k, v in self._slide.properties.items() if v is not None}
            self.vendor = self.properties.get("tiffslide.vendor", "generic-tiff")
            self._check_pages()
        except BaseException:
            self._slide.close()
            raise

    def _check_pages(self) -> None:
        """Refuse what is no 8-bit picture, and chunks that would not fit into memory."""
        for page in self._slide.ts_tifffile.pages:
            page = page.aspage()
            piece = int(np.prod(page.chunks))
            if piece > 4 * MAX_PLAIN_PX:
                raise SlideUnreadable(f"the TIFF has pieces of {page.chunks}; at most {MAX_PLAIN_PX} px each are read")
        first = self._slide.ts_tifffile.pages.first
        if first.dtype != np.uint8 or first.samplesperpixel not in (1, 3, 4):
            raise SlideUnreadable(
                f"the TIFF holds {first.samplesperpixel} samples of {first.dtype}; 8-bit grey, RGB or RGBA is read"
            )

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        factor = self._downsamples[level]
        location = (round(x * factor), round(y * factor))
        try:
            with self._lock:
                pixels = self._slide.read_region(location, level, (width, height), as_array=True)
        except Exception as error:  # tifffile and its codecs raise whatever the broken bytes lead them into
            raise SlideUnreadable(
                f"the slide's data is broken at level {level}, ({x}, {y}): {reason(error, self._path)}"
            ) from error
        return to_rgb(pixels)

    def close(self) -> None:
        self._slide.close()


class PictureReader:
    """A plain PNG, JPEG, WebP, BMP or TIFF picture, upright, decoded whole into a small pyramid. Thread-safe."""

    vendor = "picture"

    def __init__(self, path: Path):
        from PIL import Image, ImageOps, UnidentifiedImageError

        Image.init()  # a decoder that is named has to be loaded
        try:
            with Image.open(path, formats=PICTURE_FORMATS) as picture:
                if picture.width * picture.height > MAX_PLAIN_PX:
                    raise Image.DecompressionBombError
                self.vendor = (picture.format or "picture").lower()
                _check_picture(picture)
                upright = ImageOps.exif_transpose(picture)
                pixels = np.asarray(upright.convert("RGBA" if _has_alpha(upright) else "RGB"))
        except Image.DecompressionBombError as error:
            raise SlideUnreadable(
                f"the picture is too large; at most {MAX_PLAIN_PX} px are read without a pyramid of levels"
            ) from error
        except SlideUnreadable:
            raise
        except UnidentifiedImageError as error:
            # Pillow's own message would tell the path
            raise SlideUnreadable(
                "not a slide; an SVS, TIFF, NDPI, MRXS, DICOM … or a PNG, JPEG, WebP or BMP is read"
            ) from error
        except (OSError, ValueError, SyntaxError) as error:
            raise SlideUnreadable(f"the picture is broken: {reason(error, path)}") from error
        self._levels = [to_rgb(pixels)]
        while max(self._levels[-1].shape[:2]) > 2048:
            self._levels.append(halve(self._levels[-1]))
        self.level_dimensions = tuple((level.shape[1], level.shape[0]) for level in self._levels)
        self.properties = {}

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return self._levels[level][y : y + height, x : x + width]

    def close(self) -> None:
        self._levels = []


def reason(error: Exception, path: Path) -> str:
    """What a library says went wrong, without the path it says it of."""
    text = str(error) or type(error).__name__
    return text.replace(str(path), "the file").replace(str(path.parent), "the folder")


def halve(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 → (H // 2, W // 2, 3): rounded means of four pixels, as `cv2.INTER_AREA` has them."""
    h, w = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    half = np.empty((h // 2, w // 2, 3), np.uint8)
    for y in range(0, h, 256):  # in strips: the sums are twice as wide as the picture
        rows = picture[y : y + 256][: h - y, :w].astype(np.uint16)
        total = rows[0::2, 0::2] + rows[0::2, 1::2] + rows[1::2, 0::2] + rows[1::2, 1::2]
        half[y // 2 : y // 2 + len(total)] = (total + 2) >> 2
    return half


def _check_picture(picture) -> None:
    """Refuse a picture that 8-bit RGB cannot stand for; its pixels are not decoded yet."""
    accepted = "one still picture of 8-bit grey, palette, RGB or RGBA colours is read"
    if picture.format in ("PNG", "WEBP") and getattr(picture, "is_animated", False):
        raise SlideUnreadable(f"the picture is animated; {accepted}")
    # Pillow keeps the upper byte of 16-bit RGB, and says so only in the decoder's arguments
    is_deep = any(";16" in str(tile.args) for tile in picture.tile)
    if is_deep or picture.mode not in PICTURE_MODES:
        raise SlideUnreadable(f"the picture's colours are {'16-bit' if is_deep else picture.mode}; {accepted}")


def _has_alpha(picture) -> bool:
    return picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Grey, RGB or RGBA uint8 of any trailing shape → (H, W, 3) uint8 RGB."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    return composite_on_white(pixels) if pixels.shape[-1] == 4 else np.ascontiguousarray(pixels[..., :3])


def composite_on_white(rgba: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 with straight alpha → (H, W, 3) uint8 over white."""
    alpha = rgba[..., 3]
    rgb = np.ascontiguousarray(rgba[..., :3])
    if alpha.min(initial=255) == 255:
        return rgb
    part = alpha[..., None].astype(np.uint32)
    return ((rgb * part + 255 * (255 - part) + 127) // 255).astype(np.uint8)
