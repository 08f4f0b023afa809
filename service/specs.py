"""A request → the JobSpec it means, checked against the slide, the models and the limits."""

import math
from dataclasses import replace

from service.rooms import Rooms
from service.routes.models import models, names
from service.schemas import ExemplarRequest, JobRequest, Model
from worker.errors import BadRequest, SlideForbidden, SlideNotFound, SlideReasonError, TooLarge, fields_of
from worker.outlines import Polygons
from worker.plan import job_mpp
from worker.roi import parse_mask, parse_roi
from worker.types import ExemplarSpec, JobSpec, Ring, SlideInfo
from worker.window import check_place, place_window


def make_spec(rooms: Rooms, wanted: JobRequest) -> JobSpec:
    """Check everything that can be wrong with a job before it is one.

    Raises:
        SlideNotFound, SlideForbidden, SlideUnreadable, MppUnknown: the slide cannot be used (as it is asked for).
        BadRequest, TooLarge: a field's value or a limit; `field` names it.
    """
    _check_choices(wanted)
    _check_queries(rooms, wanted)
    model = wanted.model or rooms.settings.model
    if model not in (known := names(rooms)):
        raise BadRequest(f"no worker has this model; accepted: {', '.join(sorted(known))}", field="model")
    roi = () if wanted.roi is None else parse_roi(wanted.roi, rooms.settings.max_roi_vertices)
    entry = rooms.catalogue.details(rooms.catalogue.find(wanted.slide))
    rooms.catalogue.require_mpp(entry.info, wanted.mpp_override)
    card = next((card for card in models(rooms) if model in card.names), None)
    _check_roi(entry.info, roi)
    _check_size(rooms, wanted, entry.info, card)
    spec = JobSpec(
        slide_path=str(entry.path),
        slide_id=entry.slide_id,
        queries=wanted.questions,
        mpp=wanted.resolution_mpp,
        roi=roi,
        tissue=wanted.tissue,
        mpp_override=wanted.mpp_override,
        tile_size_px=wanted.tile_size_px,
        overlap=wanted.overlap,
        threshold=wanted.threshold,
        min_region_um2=wanted.min_region_um2,
        min_coverage=wanted.min_coverage,
        model=model,
        priority=wanted.priority,
    )
    return spec if wanted.exemplar is None else _with_exemplar(rooms, wanted.exemplar, spec, entry.info, card)


def _with_exemplar(
    rooms: Rooms, wanted: ExemplarRequest, spec: JobSpec, info: SlideInfo, card: Model | None
) -> JobSpec:
    """The spec with its exemplar; until the model's worker is heard from, its size at the job's scale is not known."""
    if card is not None and not card.exemplars:
        able = sorted({name for other in models(rooms) if other.exemplars for name in other.names})
        accepted = f"models that do: {', '.join(able)}" if able else "no model that does is running now"
        raise BadRequest(f"{spec.model} takes no exemplar; {accepted}", field="exemplar")
    most = rooms.settings.max_roi_vertices
    roi = () if wanted.roi is None else parse_roi(wanted.roi, most, "exemplar.roi")
    drawn = None if isinstance(wanted.mask, str) else parse_mask(wanted.mask, most)
    with fields_of("exemplar"):
        entry = rooms.catalogue.details(rooms.catalogue.find(wanted.slide))
    mask = _painted(rooms, wanted.mask, entry.info) if drawn is None else drawn
    exemplar = ExemplarSpec(str(entry.path), entry.slide_id, mask, roi, wanted.mpp_override)
    if card is None:
        check_place(exemplar, entry.info)
    else:
        place_window(exemplar, entry.info, job_mpp(info, spec, card.default_mpp), card.tile_size_px)
    return replace(spec, exemplar=exemplar)


def _painted(rooms: Rooms, mask: str, info: SlideInfo) -> Polygons:
    """The outlines of a mask picture."""
    try:
        return rooms.catalogue.outline(mask, info, "exemplar.mask")
    except (SlideNotFound, SlideForbidden) as error:
        raise BadRequest(
            "no mask picture has this reference; accepted is GeoJSON, or the slide_id or file: reference of a PNG, "
            "TIFF or BMP under one of the slide folders",
            field="exemplar.mask",
        ) from error
    except SlideReasonError as error:
        error.field = "exemplar.mask"
        raise


def _check_choices(wanted: JobRequest) -> None:
    asked = (wanted.query is not None) + (wanted.queries is not None)
    if asked > 1 or (not asked and wanted.exemplar is None):
        raise BadRequest(
            "give either `query` (one question) or `queries` (a list), exactly one of them; none is needed with an "
            "`exemplar`",
            field="query",
        )
    if wanted.mpp is not None and wanted.magnification is not None:
        raise BadRequest("give either `mpp` or `magnification`, not both", field="magnification")


def _check_queries(rooms: Rooms, wanted: JobRequest) -> None:
    most, longest = rooms.settings.max_queries, rooms.settings.max_query_chars
    if len(wanted.questions) > most:
        raise BadRequest(f"{len(wanted.questions)} queries are too many; up to {most} are accepted", field="queries")
    for number, query in enumerate(wanted.questions):
        if len(query) > longest:
            field = "query" if wanted.queries is None else f"queries[{number}]"
            raise BadRequest(f"the query is too long; up to {longest} characters are accepted", field=field)


def _check_roi(info: SlideInfo, roi: tuple[Ring, ...]) -> None:
    """A ring wholly outside the slide was drawn in another frame; better to say so than to find nothing there."""
    for ring in roi:
        xs, ys = [x for x, _ in ring], [y for _, y in ring]
        if max(xs) <= 0 or max(ys) <= 0 or min(xs) >= info.width_px0 or min(ys) >= info.height_px0:
            raise BadRequest(
                "a polygon of the roi lies outside the slide; accepted are level-0 pixels "
                f"with 0 <= x <= {info.width_px0} and 0 <= y <= {info.height_px0}",
                field="roi",
            )


def _check_size(rooms: Rooms, wanted: JobRequest, info: SlideInfo, card: Model | None) -> None:
    """Refuse a resolution so fine that the job would never end; the grid is counted before tissue and roi thin it."""
    if card and wanted.tile_size_px not in (None, card.tile_size_px):
        raise BadRequest(f"{card.name} takes tiles of {card.tile_size_px} px only", field="tile_size_px")
    mpp = wanted.resolution_mpp or (card.default_mpp if card else 1.0)
    tile_px = wanted.tile_size_px or (card.tile_size_px if card else 256)
    stride_um = max(tile_px * (1 - wanted.overlap), 1) * mpp
    mpp_x, mpp_y = wanted.mpp_override or info.mpp_x, wanted.mpp_override or info.mpp_y
    tiles = math.ceil(info.width_px0 * mpp_x / stride_um) * math.ceil(info.height_px0 * mpp_y / stride_um)
    if tiles > rooms.settings.max_tiles:
        raise TooLarge(
            f"at {mpp:g} µm/px this slide has about {tiles} tiles; up to {rooms.settings.max_tiles} are accepted: "
            "ask for a larger mpp",
            field="mpp" if wanted.magnification is None else "magnification",
        )
