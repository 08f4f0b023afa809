"""Bodies of requests and answers. Unknown fields are refused, and numbers must be finite."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from worker.types import SAME_AS_EXAMPLE

Status = Literal["accepted", "running", "successful", "failed", "dismissed"]

Reference = Annotated[
    str,
    Field(
        min_length=1,
        max_length=4096,
        description="A slide_id; a `file:` reference or path under one of the slide folders; or, where the operator "
        "allows it, `https://host/slide.svs`, `s3://bucket/slide.svs`, `s3://bucket/folder/`, or "
        "`dicomweb:https://host/dicom-web/studies/{uid}/series/{uid}`",
        examples=["file:CMU-1-Small-Region.svs"],
    ),
]


class Request(BaseModel):
    """Base of request bodies."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, strict=True)


class Answer(BaseModel):
    """Base of response bodies."""

    model_config = ConfigDict(frozen=True)


EXAMPLE_OUTLINE = {"type": "Polygon", "coordinates": [[[900, 700], [1100, 700], [1100, 900], [900, 900], [900, 700]]]}
EXAMPLES = (
    {"slide": "file:CMU-1-Small-Region.svs", "query": "Where is the tumour?", "mpp": 1.0},
    {
        "slide": "file:CMU-1-Small-Region.svs",
        "exemplar": {"slide": "file:reference.svs", "mask": EXAMPLE_OUTLINE},
        "mpp": 1.0,
    },
)


class ExemplarRequest(Request):
    """A reference to find the like of: what is outlined on a slide, this one or another."""

    slide: Reference
    mask: Annotated[Any, WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]})] = Field(
        description="The outline: GeoJSON Polygon, MultiPolygon, Feature or FeatureCollection in level-0 pixels of the "
        "exemplar's slide, holes are kept; or the slide_id or `file:` reference of a PNG, TIFF or BMP as large as that "
        "slide, in which all that is not black is meant",
        examples=[EXAMPLE_OUTLINE, "file:mask.png"],
    )
    roi: dict[str, Any] | None = Field(
        None,
        description="GeoJSON polygons outside which nothing of that slide is shown; default: what lies around the mask",
    )
    mpp_override: float | None = Field(
        None, gt=0.01, le=100, description="µm per level-0 pixel of the exemplar's slide, instead of what it says"
    )

    @field_validator("mask")
    @classmethod
    def _mask_is_drawn_or_painted(cls, value: Any) -> Any:
        if isinstance(value, dict) or (isinstance(value, str) and 0 < len(value) <= 4096):
            return value
        raise ValueError("it must be a GeoJSON object, or the slide_id or file: reference of a mask picture")


class JobRequest(Request):
    """A question about a slide."""

    model_config = ConfigDict(json_schema_extra={"examples": list(EXAMPLES)})

    slide: Reference
    query: str | None = Field(
        None,
        description="One question; or give `queries`; with an `exemplar` neither is needed",
        examples=["Where is the tumour?"],
    )
    queries: list[str] | None = Field(
        None, min_length=1, description="Several questions, served by one pass over the tiles"
    )
    mpp: float | None = Field(
        None, gt=0.01, le=100, description="µm per pixel of tiles and overlay; default: the model's"
    )
    magnification: float | None = Field(
        None, gt=0.1, le=1000, description="Instead of mpp: 10 / mpp, so 40 is 0.25 µm/px"
    )
    roi: dict[str, Any] | None = Field(
        None,
        description="GeoJSON Polygon, MultiPolygon, Feature or FeatureCollection in level-0 pixels; default: tissue",
    )
    tissue: Literal["auto", "off"] = Field("auto", description="`auto` skips glass, `off` looks everywhere")
    mpp_override: float | None = Field(
        None, gt=0.01, le=100, description="µm per level-0 pixel, instead of what the slide says"
    )
    tile_size_px: int | None = Field(None, ge=64, le=2048, description="Edge of a tile; default: the model's")
    overlap: float = Field(0.5, ge=0, le=0.75, description="Fraction of a tile shared with its neighbour")
    threshold: float = Field(0.5, gt=0, lt=1, description="Probability from which a pixel belongs to a region")
    min_region_um2: float = Field(500.0, ge=0, le=1e12, description="Smaller regions are dropped")
    min_coverage: float = Field(0.5, ge=0, le=1, description="A job that could look at less of its tiles fails")
    model: str | None = Field(None, min_length=1, max_length=200, description="A name of GET /v1/models")
    exemplar: ExemplarRequest | None = Field(
        None, description="Shown beside every tile, to find the same; for models whose card says `exemplars`"
    )
    priority: int = Field(0, ge=-100, le=100, description="Higher runs first")
    callback_url: str | None = Field(
        None,
        min_length=1,
        max_length=2048,
        description="Where a signed webhook is sent at the job's end; the operator says to which hosts. Never shown",
        examples=["https://lis.example.org/hooks/slides"],
    )

    @field_validator("query")
    @classmethod
    def _query_says_something(cls, value: str | None) -> str | None:
        return value if value is None else readable(value)

    @field_validator("queries")
    @classmethod
    def _queries_say_something(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        value = [readable(text) for text in value]
        if len(set(value)) < len(value):
            raise ValueError("the same query stands there twice; give each query once")
        return value

    @property
    def questions(self) -> tuple[str, ...]:
        """All queries, in order; an exemplar alone asks for its like."""
        if self.queries is not None:
            return tuple(self.queries)
        return (SAME_AS_EXAMPLE if self.query is None else self.query,)

    @property
    def resolution_mpp(self) -> float | None:
        """µm/px asked for, by either name."""
        return self.mpp if self.magnification is None else 10.0 / self.magnification


def readable(text: str) -> str:
    """A query stripped of outer space; refuses what no person can have meant."""
    text = text.strip()
    if not text:
        raise ValueError("a query must say something; give a question in words")
    if any(ord(letter) < 32 and letter not in "\t\n\r" or ord(letter) == 127 for letter in text):
        raise ValueError("a query holds control characters; give plain text")
    if not any(letter.isalnum() for letter in text):
        raise ValueError("a query must hold at least one letter or digit")
    return text


class SlideRequest(Request):
    """Register a slide that lies under one of the slide folders, or have one fetched that lies elsewhere."""

    reference: Reference
    name: str | None = Field(
        None, min_length=1, max_length=200, description="Name to show in lists; no patient data, please"
    )


class Link(Answer):
    """A link, as in OGC API Processes."""

    href: str
    rel: str
    type: str
    title: str


class SlideFetch(Answer):
    """How the fetch of a slide that lies elsewhere stands.

    `away` is neither here nor on its way: nobody asked for it for long, or its gateway was lost. A job or a POST of its
    reference fetches it again.
    """

    state: Literal["fetching", "here", "failed", "away"]
    bytes_done: int = Field(description="Of what is being fetched")
    bytes_total: int | None = Field(description="Of it, where its server says")
    detail: str | None = Field(description="Why it failed")


class Slide(Answer):
    """A slide of the catalogue. `details` of a list entry that nobody opened yet are null."""

    slide_id: str
    name: str | None = None
    format: str
    size_bytes: int
    origin: Literal["folder", "reference", "upload"]
    width_px0: int | None = None
    height_px0: int | None = None
    level_dimensions: list[tuple[int, int]] | None = None
    level_downsamples: list[float] | None = None
    mpp_x: float | None = None
    mpp_y: float | None = None
    mpp_source: str | None = None
    objective_power: float | None = None
    vendor: str | None = None
    bounds_px0: tuple[int, int, int, int] | None = None
    content_hash: str | None = None
    fetch: SlideFetch | None = Field(None, description="Of a slide that lies elsewhere; null for those on our disks")
    links: list[Link]


class SlideList(Answer):
    """A page of the catalogue."""

    slides: list[Slide]
    next_cursor: str | None
    links: list[Link]


class Tiles(Answer):
    """How many tiles of a job are done, to do, failed, and left out as glass or outside the roi."""

    done: int
    total: int
    failed: int
    skipped: int


class JobStatus(Answer):
    """Status document, names as in OGC API Processes."""

    jobID: str
    type: Literal["process"] = "process"
    processID: str = "reasoning-segmentation"
    status: Status
    message: str
    created: datetime
    started: datetime | None
    finished: datetime | None
    updated: datetime
    progress: int = Field(ge=0, le=100)
    tiles: Tiles
    coverage: float | None
    eta_s: float | None
    queue_position: int | None
    slide: str
    queries: list[str]
    model: str
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    links: list[Link]


class JobList(Answer):
    """A page of jobs, newest first."""

    jobs: list[JobStatus]
    next_cursor: str | None
    links: list[Link]


class CoverageBlock(Answer):
    """A square of the overlay, done by one worker at a time; `tiles` are those it counts."""

    key: str
    bbox_px0: tuple[float, float, float, float]
    state: Literal["waiting", "running", "done", "failed"]
    tiles: int
    tiles_done: int
    tiles_failed: int


class Coverage(Answer):
    """What of a slide a job looks at, in level-0 pixels (x, y): its tile grid and its blocks."""

    job: str
    frame: Literal["level0"]
    size_px0: tuple[float, float]
    tile_px0: tuple[float, float]
    stride_px0: tuple[float, float]
    offset_px0: tuple[float, float] = Field(description="Upper left corner of tile 0_0; may lie outside the slide")
    rows: int
    cols: int
    wanted: str = Field(description="base64 of rows × cols bits, row by row, the highest first: 1 is looked at")
    blocks: list[CoverageBlock]


class Model(Answer):
    """What a segmenter tells about itself; `default` is the one used when a job names none."""

    name: str
    names: list[str]
    default: bool
    revision: str
    tile_size_px: int
    default_mpp: float
    targets: list[str]
    licence: str
    parameters: int
    figures: dict[str, Any]
    exemplars: bool = Field(description="Whether its jobs may show an `exemplar`")
    workers: int


class ModelList(Answer):
    """Models of the workers heard from lately."""

    models: list[Model]
    default: str


class ProblemBody(Answer):
    """RFC 9457 problem with a stable `code`."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    field: str | None = None
    errors: list[dict[str, Any]] | None = None
