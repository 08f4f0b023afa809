"""Liveness, readiness, metrics: for whoever runs the service."""

import logging
from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.errors import Problem
from service.rooms import Open, Rooms
from service.routes.models import models
from worker.queue import ping

log = logging.getLogger("slidereason.service")

router = APIRouter(tags=["health"])

Check = Literal["database", "broker", "artifacts", "worker"]


@router.get("/healthz", summary="The process answers")
async def healthz() -> dict:
    """200 as long as the event loop turns; asks nothing of anybody else."""
    return {"status": "ok"}


@router.get("/readyz", summary="Jobs can be taken and worked on", responses={503: {"description": "Something is away"}})
def readyz(
    rooms: Open,
    exclude: Annotated[
        list[Check] | None, Query(description="Not to be required; `worker` where workers come with the jobs")
    ] = None,
) -> JSONResponse:
    """Database, broker, artifact store, and a worker heard from; 503 names what is away, or that we are stopping."""
    checks = {name: _works(name, check) for name, check in _checks(rooms).items()}
    if rooms.draining.begun:
        raise Problem(503, "draining", "this process has been told to stop; ask another", checks=checks)
    away = [name for name, fine in checks.items() if not fine and name not in (exclude or ())]
    if away:
        detail = f"away: {', '.join(away)}"
        raise Problem(503, "not-ready", detail, headers={"Retry-After": "5"}, checks=checks)
    running = models(rooms) if checks["database"] else []
    body = {
        "status": "ready",
        "checks": checks,
        "models": [{"name": model.name, "revision": model.revision, "workers": model.workers} for model in running],
    }
    return JSONResponse(body, headers={"Cache-Control": "no-store"})


@router.get("/metrics", summary="Prometheus metrics", responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request) -> Response:
    """What waits, what failed, who works, and the requests that this process answered."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _checks(rooms: Rooms) -> dict[str, Callable[[], object]]:
    return {
        "database": rooms.ledger.ping,
        "broker": lambda: ping(rooms.broker),
        "artifacts": rooms.artifacts.check,
        "worker": lambda: _require_worker(rooms),
    }


def _require_worker(rooms: Rooms) -> None:
    if not rooms.ledger.workers(rooms.settings.worker_heard_s):
        raise LookupError("no worker heard from")


def _works(name: str, check: Callable[[], object]) -> bool:
    try:
        check()
    except Exception as error:  # whatever is wrong with it, it is not ready; the log says what
        log.warning("not ready: %s: %s", name, error)
        return False
    return True
