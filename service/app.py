"""The application: wiring only."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import docs, errors
from service.limits import Limits
from service.rooms import Rooms
from service.routes import health, jobs, models, overlays, regions, reports, slides
from service.schemas import ProblemBody
from service.settings import Settings, read_settings

DESCRIPTION = (
    "A clinical question about a whole slide is answered with a mask and the reasoning behind it. "
    "**Research use only.** Coordinates are level-0 pixels (x, y); resolution is µm per pixel."
)
RESULTS = re.compile(r"^/v1/jobs/[^/]+/(overlay|regions|report)")


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service over a ledger, artifacts and a broker that are already there.

    `slidereason serve` starts those and calls this; `uvicorn --factory service.app:create_app` is for a cluster.

    Args:
        settings: default: the environment.

    Raises:
        ValueError: the settings are not accepted, or name no broker.
    """
    settings = settings or read_settings()
    rooms = Rooms.open(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        rooms.close()

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
    app.openapi = partial(_describe, app, app.openapi)
    errors.install(app)
    for room in (models, slides, jobs, overlays, regions, reports, health, docs):
        app.include_router(room.router)
    # outermost last: a body is counted before anything reads it, and even a refusal carries the headers below
    app.add_middleware(
        Limits,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        hosts=settings.allowed_hosts,
    )
    app.add_middleware(ResultsCors, origins=settings.cors_origins)
    app.add_middleware(SafeHeaders)
    return app


def _describe(app: FastAPI, describe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """OpenAPI with the media type that errors really have."""
    if not app.openapi_schema:
        for path in describe()["paths"].values():
            for operation in path.values():
                for answer in operation["responses"].values():
                    content = answer.get("content", {})
                    if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/ProblemBody"):
                        content[errors.MEDIA_TYPE] = content.pop("application/json")
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


class SafeHeaders:
    """Headers that every response has."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Adds what is not there yet."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                present = {name.lower() for name, _ in headers}
                for name, value in ((b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"SAMEORIGIN")):
                    if name not in present:
                        headers.append((name, value))
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)
