"""Liveness and readiness."""

import logging
from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from service.errors import Problem, problem_response
from service.rooms import In, Rooms
from worker.queue import ping

log = logging.getLogger("slidereason.service")

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="The process answers")
async def healthz() -> dict:
    """200 as long as the event loop turns; asks nothing of anybody else."""
    return {"status": "ok"}


@router.get("/readyz", summary="Jobs can be taken and worked on", responses={503: {"description": "Something is away"}})
def readyz(rooms: In) -> JSONResponse:
    """Database, broker, artifact store, and a worker heard from; 503 names what is away."""
    checks = {name: _works(name, check) for name, check in _checks(rooms).items()}
    if all(checks.values()):
        return JSONResponse({"status": "ready", "checks": checks}, headers={"Cache-Control": "no-store"})
    away = [name for name, fine in checks.items() if not fine]
    problem = Problem(503, "not-ready", f"away: {', '.join(away)}", headers={"Retry-After": "5"}, checks=checks)
    return problem_response(problem)


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
