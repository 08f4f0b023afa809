"""The application: wiring only."""

import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import docs, errors
from service.errors import request_id
from service.examples import add_examples
from service.limits import Limits
from service.metrics import Measured, Metrics
from service.process_logs import setup_logs_of
from service.process_memory import settle
from service.rooms import Rooms
from service.routes import (
    coverage,
    deliveries,
    exports,
    health,
    jobs,
    links,
    models,
    overlays,
    regions,
    reports,
    schemas_published,
    shared,
    slides,
    tiles,
    viewer,
)
from service.schemas import ProblemBody
from service.settings import Settings, read_settings
from worker.logs import log_context
from worker.tracing import setup_tracing, stop_tracing

DESCRIPTION = (
    "A clinical question about a whole slide is answered with a mask and the reasoning behind it. "
    "**Research use only.** Coordinates are level-0 pixels (x, y); resolution is µm per pixel."
)
RESULTS = re.compile(r"^/v1/(jobs/[^/]+/(overlay|regions|report|exports|tiles|dicom-)|shared/[^/]+/)")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service over a ledger, artifacts and a broker that are already there.

    `slidereason serve` starts those and calls this; `uvicorn --factory service.app:create_app` is for a cluster.

    Args:
        settings: default: the environment, which then also says how to log and trace.

    Raises:
        ValueError: the settings are not accepted, or name no broker.
    """
    alone = settings is None
    if settings is None:
        settings = read_settings()
        setup_logs_of(settings)
        setup_tracing("slidereason-gateway")
    rooms = Rooms.open(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if alone:
            settle()
        with rooms.draining.noticed(settings.shutdown_delay_s, rooms.board.end_streams):
            yield
        await rooms.board.close()
        rooms.close()
        if alone:
            stop_tracing()

    app = FastAPI(
        title="SlideReason",
        version=our_version(),
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": {"model": ProblemBody, "description": "What went wrong, as an RFC 9457 problem"}},
        lifespan=lifespan,
    )
    app.state.rooms = rooms
    app.state.metrics = Metrics(
        rooms.ledger, settings.model, settings.worker_heard_s, streams=lambda: rooms.board.streams
    )
    app.openapi = partial(_describe, app, app.openapi)
    errors.install(app)
    for room in (
        models, slides, jobs, overlays, regions, reports, exports, deliveries, tiles, coverage, links, shared,
        schemas_published, health, docs, viewer,
    ):  # fmt: skip
        app.include_router(room.router)
    # outermost last: a body is counted before anything reads it, and even a refusal carries the headers below
    app.add_middleware(
        Limits,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        hosts=settings.allowed_hosts,
        behind_proxy=settings.behind_proxy,
    )
    app.add_middleware(ResultsCors, origins=settings.cors_origins)
    app.add_middleware(Measured, metrics=app.state.metrics)
    app.add_middleware(Named)
    return app


def _describe(app: FastAPI, describe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """OpenAPI with the media type that errors really have, and with examples."""
    if not app.openapi_schema:
        for path in describe()["paths"].values():
            for operation in path.values():
                for answer in operation["responses"].values():
                    content = answer.get("content", {})
                    if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/ProblemBody"):
                        content[errors.MEDIA_TYPE] = content.pop("application/json")
        add_examples(app.openapi_schema)
    return app.openapi_schema


def our_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("slidereason")
    except PackageNotFoundError:
        return "0+source"


class ResultsCors:
    """CORS for a job's results only (read-only, under an unguessable id): pages elsewhere can do nothing else."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]):
        self.app = app
        self.shared = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD"),
            allow_headers=("Range", "If-Range", "If-None-Match"),
            expose_headers=("Accept-Ranges", "Content-Range", "Content-Length", "ETag", "Retry-After"),
            allow_private_network=True,
            max_age=86400,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Results pass through CORS, everything else does not."""
        results = scope["type"] == "http" and RESULTS.match(scope["path"])
        await (self.shared if results else self.app)(scope, receive, send)


class Named:
    """Gives every request an id, and every response that id and the headers that all have.

    A client's or a proxy's own `X-Request-ID` is kept; logs and problems repeat it.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Adds what is not there yet."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        named = Headers(scope=scope).get("x-request-id", "")
        if not REQUEST_ID.fullmatch(named):
            named = uuid.uuid4().hex
        added = (*SAFE_HEADERS, (b"x-request-id", named.encode()))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                present = {name.lower() for name, _ in headers}
                headers.extend((name, value) for name, value in added if name not in present)
            await send(message)

        request_id.set(named)  # stays for whoever answers a failure further out; every request is a task of its own
        with log_context(request_id=named):
            await self.app(scope, receive, sending)


SAFE_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"SAMEORIGIN"))
