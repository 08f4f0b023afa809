"""What of a slide a job looks at, and how far it has come: its tile grid and its blocks, also while it runs."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select

from service.files import NOSNIFF
from service.rooms import In
from service.schemas import Coverage
from worker.ledger_schema import jobs, units
from worker.types import TilePlan

router = APIRouter(tags=["viewer"])

STATES = {"leased": "running", "held": "waiting"}


@router.get("/v1/jobs/{job_id}/coverage", summary="Which tiles and blocks are looked at", response_model=Coverage)
def show_coverage(rooms: In, job_id: Annotated[str, Path(max_length=100)]) -> Response:
    """All in level-0 pixels. A block whose `state` is `failed` was not looked at; 409 before the job is planned."""
    job = rooms.ledger.job(job_id, rooms.tenant)
    columns = (units.c.key, units.c.state, units.c.tiles, units.c.tiles_done, units.c.tiles_failed)
    wanted = select(*columns).where(units.c.job_id == job_id, units.c.kind == "segment").order_by(units.c.position)
    with rooms.ledger.engine.connect() as connection:
        stored = connection.scalar(select(jobs.c.plan).where(jobs.c.job_id == job_id))
        rows = connection.execute(wanted).all()
    if stored is None:
        rooms.finished(job_id)  # says why there is none: not planned yet, failed before it was, expired
    plan = TilePlan.from_json(stored)
    body = {"job": job.job_id, "frame": "level0", **_grid(plan), "blocks": [_block(plan, row) for row in rows]}
    return JSONResponse(body, headers={"Cache-Control": "no-cache", **NOSNIFF})


def _grid(plan: TilePlan) -> dict[str, Any]:
    x, y = plan.scale_x, plan.scale_y
    return {
        "size_px0": [plan.width_px * x, plan.height_px * y],
        "tile_px0": [plan.tile_px * x, plan.tile_px * y],
        "stride_px0": [plan.stride_px * x, plan.stride_px * y],
        "offset_px0": [plan.offset_px[0] * x, plan.offset_px[1] * y],
        "rows": plan.rows,
        "cols": plan.cols,
        "wanted": plan.wanted,
    }


def _block(plan: TilePlan, row: Any) -> dict[str, Any]:
    top, left = (int(part) * plan.block_px for part in row.key.split("_"))
    right, bottom = min(left + plan.block_px, plan.width_px), min(top + plan.block_px, plan.height_px)
    x, y = plan.scale_x, plan.scale_y
    return {
        "key": row.key,
        "bbox_px0": [left * x, top * y, right * x, bottom * y],
        "state": STATES.get(row.state, row.state),
        "tiles": row.tiles,
        "tiles_done": row.tiles_done,
        "tiles_failed": row.tiles_failed,
    }
