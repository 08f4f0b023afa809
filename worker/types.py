"""The nouns of a job, frozen: what a slide is, what is asked of it, how it is cut, and what comes back.

Frames: `_px0` are level-0 pixels of the slide, `_px` are overlay pixels (isotropic, at the job's mpp). Points are
(x, y), arrays (H, W[, C]); the origin is the top-left corner of level 0.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

Point = tuple[float, float]
Ring = tuple[Point, ...]


@dataclass(frozen=True)
class SlideInfo:
    """What a slide says of itself, and nothing that could name a patient.

    Attributes:
        width_px0, height_px0: size of level 0.
        level_dimensions: (width, height) of each level, finest first.
        level_downsamples: factor of each level against level 0.
        mpp_x, mpp_y: µm per level-0 pixel; None when unknown.
        mpp_source: `openslide.mpp`, `ome.physical-size`, `tiff.resolution`, `objective-power`, `override`, or None.
        objective_power: e.g. 20.0; None when unknown.
        vendor: the format's vendor, e.g. `aperio`.
        bounds_px0: (x, y, width, height) of the scanned area, when the format states it.
        content_hash: identifies the file's content for caching and reports.
    """

    width_px0: int
    height_px0: int
    level_dimensions: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    mpp_x: float | None
    mpp_y: float | None
    mpp_source: str | None
    objective_power: float | None
    vendor: str
    bounds_px0: tuple[int, int, int, int] | None = None
    content_hash: str = ""


SAME_AS_EXAMPLE = "Find the same as in the example."
"""What a job asks that shows an exemplar and says nothing."""


@dataclass(frozen=True)
class ExemplarSpec:
    """A reference that a job shows: a place on a slide, and what is outlined there.

    Attributes:
        slide_path, slide_id: as a job's; another slide, or the same.
        mask: polygons, each its exterior ring and its holes, in level-0 pixels of *that* slide.
        roi: exterior rings, level-0 pixels of that slide, outside which nothing is shown; empty shows what lies around.
        mpp_override: µm per level-0 pixel of that slide to use instead of what it says.
    """

    slide_path: str
    slide_id: str
    mask: tuple[tuple[Ring, ...], ...]
    roi: tuple[Ring, ...] = ()
    mpp_override: float | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ExemplarSpec":
        """Rebuild from a dict of `JobSpec.to_json`."""
        data = dict(data)
        data["mask"] = tuple(_rings(polygon) for polygon in data["mask"])
        data["roi"] = _rings(data.get("roi", ()))
        return cls(**data)


@dataclass(frozen=True)
class JobSpec:
    """Everything that changes a job's result; stored as JSON in the ledger.

    Attributes:
        slide_path: absolute path of the resolved slide (never echoed to a client).
        slide_id: the opaque id under which the client knows it.
        queries: one or more questions; one pass over the tiles serves all of them.
        mpp: µm/px of tiles and overlay; None means the model's `default_mpp`.
        roi: exterior rings of GeoJSON polygons in level-0 pixels; empty means the whole slide.
        tissue: `auto` skips glass; `off` looks everywhere.
        mpp_override: µm per level-0 pixel to use instead of what the slide says.
        tile_size_px: None means the model's.
        overlap: fraction of a tile shared with its neighbour, in [0, 0.75].
        threshold: blended probability from which a pixel belongs to a region.
        min_region_um2: smaller regions are dropped.
        min_coverage: a job that looked at less of its tiles than this fails.
        second_look: ask silent tiles again where a neighbour's mask crosses into them.
        grid_offset_px: shift of the global tile grid in overlay pixels (dx, dy), to measure that it does not show.
        block_px: edge of a block in overlay pixels; None chooses by slide size.
        model: name of the segmenter.
        priority: higher runs first.
        exemplar: a reference that every tile is looked at beside; None asks by words alone.
    """

    slide_path: str
    slide_id: str
    queries: tuple[str, ...]
    mpp: float | None = None
    roi: tuple[Ring, ...] = ()
    tissue: str = "auto"
    mpp_override: float | None = None
    tile_size_px: int | None = None
    overlap: float = 0.5
    threshold: float = 0.5
    min_region_um2: float = 500.0
    min_coverage: float = 0.5
    second_look: bool = True
    grid_offset_px: tuple[int, int] = (0, 0)
    block_px: int | None = None
    model: str = "tiny"
    priority: int = 0
    exemplar: ExemplarSpec | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "JobSpec":
        """Rebuild a spec from `to_json`'s dict, lists turned back into tuples."""
        data = dict(data)
        data["queries"] = tuple(data["queries"])
        data["roi"] = _rings(data.get("roi", ()))
        data["exemplar"] = ExemplarSpec.from_json(data["exemplar"]) if data.get("exemplar") else None
        data["grid_offset_px"] = tuple(data.get("grid_offset_px", (0, 0)))
        return cls(**data)


def _rings(rings: Any) -> tuple[Ring, ...]:
    return tuple(tuple(tuple(point) for point in ring) for ring in rings)


@dataclass(frozen=True)
class Tile:
    """One cell of the job's global grid.

    Attributes:
        row, col: its id; never shifted by an ROI or a block.
        x_px, y_px: overlay-pixel corner of the tile (may lie outside the overlay; read as white).
        size_px: edge in overlay pixels.
    """

    row: int
    col: int
    x_px: int
    y_px: int
    size_px: int

    @property
    def key(self) -> str:
        """`row_col`, unique in the job."""
        return f"{self.row}_{self.col}"

    @property
    def centre_px(self) -> Point:
        """Centre in overlay pixels; the block that holds it owns the tile."""
        return (self.x_px + self.size_px / 2, self.y_px + self.size_px / 2)


@dataclass(frozen=True)
class Block:
    """A shard-aligned square of the overlay: one ledger row, one retry, one Zarr shard per level.

    Attributes:
        row, col: position in the grid of blocks.
        x_px, y_px, width_px, height_px: its part of the overlay, clipped to the overlay.
        tiles: every tile that touches it and is looked at, in (row, col) order.
        halo: further tiles, of which `tiles` learn where a mask crosses into them, and who agrees with them.
        owned: keys of the tiles whose (clamped) centre lies in this block; they are counted here.
    """

    row: int
    col: int
    x_px: int
    y_px: int
    width_px: int
    height_px: int
    tiles: tuple[Tile, ...]
    halo: tuple[Tile, ...]
    owned: frozenset[str]

    @property
    def key(self) -> str:
        """`row_col`, unique in the job."""
        return f"{self.row}_{self.col}"


@dataclass(frozen=True)
class TilePlan:
    """How a slide is cut: pure function of slide, tissue and spec. Blocks are derived from it on demand.

    Attributes:
        width_px, height_px: size of the overlay.
        mpp: µm per overlay pixel, isotropic.
        scale_x, scale_y: level-0 pixels per overlay pixel.
        tile_px, stride_px: edge and step of the tile grid.
        offset_px: (dx, dy) of the grid.
        rows, cols: size of the tile grid.
        block_px: edge of a block.
        block_keys: keys of the blocks that have anything to look at, in raster order.
        wanted: (rows, cols) bool as nested bytes-free tuple is wasteful, so: base64 of numpy.packbits of it.
        n_tiles: number of wanted tiles; n_skipped: tiles of the grid left out (glass, outside the ROI).
    """

    width_px: int
    height_px: int
    mpp: float
    scale_x: float
    scale_y: float
    tile_px: int
    stride_px: int
    offset_px: tuple[int, int]
    rows: int
    cols: int
    block_px: int
    block_keys: tuple[str, ...]
    wanted: str
    n_tiles: int
    n_skipped: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TilePlan":
        """Rebuild a plan from `to_json`'s dict."""
        data = dict(data)
        data["offset_px"] = tuple(data["offset_px"])
        data["block_keys"] = tuple(data["block_keys"])
        return cls(**data)


@dataclass(frozen=True)
class TileRecord:
    """What a block remembers of a tile it owns, for chains and evidence.

    Attributes:
        key: tile id `row_col`; query_index: which query.
        x_px, y_px, size_px: its frame in the overlay.
        text: the model's answer; emitted, p_seg, confidence: how sure it was.
        second_look: True when it was asked again.
        agreement: mean agreement with its neighbours in the overlaps, in [0, 1]; None without neighbours.
        shares: {"{block_key}/{block-local component label}": confidence-weighted pixels of it that this tile made}.
        error: reason when the tile failed; then it has no text.
        owned: False when another block owns the tile; then the record is there for its shares only and is not counted.
        stain: six numbers, the template of its tissue (`model/data/stain_shift.py`); None without tissue or picture.
        claims: what the answer claims of its mask (`model/evaluation/contradiction.py`) → whether the mask contradicts
            it; None when that was not looked at.
    """

    key: str
    query_index: int
    x_px: int
    y_px: int
    size_px: int
    text: str = ""
    emitted: bool = False
    p_seg: float = 0.0
    confidence: float = 0.0
    second_look: bool = False
    agreement: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    owned: bool = True
    stain: tuple[float, ...] | None = None
    claims: dict[str, bool] | None = None


@dataclass(frozen=True)
class Region:
    """A connected component of the overlay, with the chain that found it.

    Attributes:
        region_id: uuid5 of job id and `"{query_index}/{label}"`; the same in every export.
        query_index, label: its value in the overlay of that query.
        polygon_px0: GeoJSON geometry (Polygon or MultiPolygon) in level-0 pixels, holes kept.
        area_um2, perimeter_um: measured on the overlay's pixels.
        bbox_px0: (x0, y0, x1, y1); centroid_px0: (x, y).
        confidence: mean blended probability inside.
        agreement: mean agreement of the overlapping tiles inside; None when only one tile saw it.
        chain: the reasoning chain of the tile with the largest share; chain_tile: that tile's key and frame.
        support, dissent: keys of the other tiles that made it, or that saw it and stayed silent.
        tiles: of the tiles that made it, those with the largest shares and what is known of each.
        stain: how far its tiles' stain is from the stains the model was trained on; None when that is not known.
        contradictions: what its tiles' answers claim of their masks and the masks contradict; None when not known.
        weak: what speaks against it, of `agreement`, `stain`, `contradiction`.
    """

    region_id: str
    query_index: int
    label: int
    polygon_px0: dict[str, Any]
    area_um2: float
    perimeter_um: float
    bbox_px0: tuple[float, float, float, float]
    centroid_px0: Point
    confidence: float
    agreement: float | None
    chain: str
    chain_tile: dict[str, Any]
    support: tuple[str, ...] = ()
    dissent: tuple[str, ...] = ()
    tiles: tuple[dict[str, Any], ...] = ()
    stain: dict[str, Any] | None = None
    contradictions: dict[str, Any] | None = None
    weak: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)
