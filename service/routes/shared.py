"""A job's results by a link: the same routes answer that answer its tenant, for this job alone and only to read.

Whoever has no good link learns nothing: one that is unknown, expired or revoked, and a result that links do not open,
answer alike. The token is in no log, metric or problem; those name the route.
"""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from service.errors import Problem
from service.rooms import SHARED, Open, Shared
from service.routes.opened import is_opened

router = APIRouter(tags=["results"])

ANSWERS = {
    200: {"content": {"application/octet-stream": {}}, "description": "As `/v1/jobs/{job_id}/{result}` answers"},
}
NOT_KEPT = "private, no-cache"


@router.get("/v1/shared/{token}/{result:path}", summary="A result by a link", responses=ANSWERS)
@router.head("/v1/shared/{token}/{result:path}", include_in_schema=False)
async def show_shared(
    rooms: Open,
    request: Request,
    token: Annotated[str, Path(description="Of a link that `POST /v1/jobs/{job_id}/links` made")],
    result: Annotated[str, Path(description="As below `/v1/jobs/{job_id}/`: `overlay/zarr.json`, `report`, …")],
) -> Response:
    """What `GET /v1/jobs/{job_id}/{result}` answers, with its query and headers, for results that links open."""
    found = await run_in_threadpool(rooms.ledger.link, token)
    if found is None or not is_opened(result):
        detail = (
            "this link opens nothing: it is unknown, has expired or was revoked, or it is no result that links open"
        )
        raise Problem(404, "link-not-found", detail)
    shared = Shared(f"/v1/shared/{token}", found.job_id, found.tenant, found.left_s)
    return _Passed(shared, result)


class _Passed(Response):
    """Lets the route of the job's own result answer."""

    def __init__(self, shared: Shared, result: str):
        super().__init__()
        self._shared, self._result = shared, result

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as if the tenant had asked for the result."""
        path = f"/v1/jobs/{self._shared.job_id}/{self._result}"
        kept = {
            name: value for name, value in scope.items() if name not in ("route", "endpoint", "path_params", "router")
        }
        inner = {**kept, "path": path, "raw_path": path.encode(), SHARED: self._shared}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["Referrer-Policy"] = "no-referrer"
                if "no-" not in headers.get("Cache-Control", ""):  # a link may be revoked meanwhile
                    headers["Cache-Control"] = NOT_KEPT
            await send(message)

        await scope["app"].router(inner, receive, sending)
