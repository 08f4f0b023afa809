"""Deep Zoom: how a slide is cut into levels and tiles for a viewer. Arithmetic only; no pixel is touched here.

Level `top` is level 0 of the slide; each level below has half its size, rounded up, down to one pixel. A pixel of
level l is exactly 2^(top - l) level-0 pixels wide, so the last column and row may reach beyond the slide.

Source: Microsoft, Deep Zoom File Format Overview, as OpenSeadragon reads it, https://openseadragon.github.io.
"""

from dataclasses import dataclass

from worker.errors import BadRequest

TILE_PX = 254
OVERLAP_PX = 1
NAMESPACE = "http://schemas.microsoft.com/deepzoom/2008"
USE = "Research use only"


@dataclass(frozen=True)
class ZoomFrame:
    """What one tile shows.

    Attributes:
        x_px0, y_px0: its corner in level-0 pixels.
        step_px0: level-0 pixels per pixel of the tile.
        width, height: of the tile in its own pixels.
    """

    x_px0: int
    y_px0: int
    step_px0: int
    width: int
    height: int


@dataclass(frozen=True)
class Zoom:
    """The levels and tiles of a slide of this size.

    Attributes:
        width_px0, height_px0: of level 0.
    """

    width_px0: int
    height_px0: int

    @property
    def top(self) -> int:
        """The finest level."""
        return (max(self.width_px0, self.height_px0) - 1).bit_length()

    def size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level in its own pixels."""
        step = 1 << (self.top - level)
        return -(-self.width_px0 // step), -(-self.height_px0 // step)

    def tiles(self, level: int) -> tuple[int, int]:
        """(columns, rows) of a level."""
        width, height = self.size(level)
        return -(-width // TILE_PX), -(-height // TILE_PX)

    def frame(self, level: int, col: int, row: int) -> ZoomFrame:
        """What a tile shows; neighbours share `OVERLAP_PX` on each side.

        Raises:
            BadRequest: there is no such tile; names the input at fault and what there is.
        """
        if not 0 <= level <= self.top:
            raise BadRequest(f"there is no level {level}; there are levels 0 to {self.top}", field="level")
        cols, rows = self.tiles(level)
        for name, value, count in (("col", col, cols), ("row", row, rows)):
            if not 0 <= value < count:
                raise BadRequest(f"level {level} has {cols} columns and {rows} rows of tiles, from 0 on", field=name)
        width, height = self.size(level)
        step = 1 << (self.top - level)
        left, top = max(0, col * TILE_PX - OVERLAP_PX), max(0, row * TILE_PX - OVERLAP_PX)
        right = min(width, (col + 1) * TILE_PX + OVERLAP_PX)
        bottom = min(height, (row + 1) * TILE_PX + OVERLAP_PX)
        return ZoomFrame(left * step, top * step, step, right - left, bottom - top)

    def descriptor(self, kind: str) -> str:
        """The `.dzi` file: XML that names size, tiles and their format, `jpeg` or `png`."""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<Image xmlns="{NAMESPACE}" Format="{kind}" Overlap="{OVERLAP_PX}" TileSize="{TILE_PX}">'
            f'<Size Width="{self.width_px0}" Height="{self.height_px0}"/></Image>\n'
            f"<!-- {USE} -->\n"
        )
