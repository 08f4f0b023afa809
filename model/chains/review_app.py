"""The review page and its few calls, for this machine alone.

Nobody is asked who they are, so only loopback addresses are served: a request must name a loopback host (no other
site's name can be made to point here) and come from the page itself, and no answer may be framed or load from outside.
"""

import ipaddress
import socket
from collections.abc import Sequence
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from fastapi import Body, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from model.chains.checks import BLOCKING, Problem
from model.chains.description import measurements, name_of, structures_to_tell
from model.chains.review import ReviewError, Reviews
from model.data.chains import SPATIAL_WORDS

_FILES = {
    "/": ("review.html", "text/html; charset=utf-8"),
    "/review.css": ("review.css", "text/css; charset=utf-8"),
    "/review.js": ("review.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TOLD = ("organ", "stain", "magnification", "mpp", "source", "patient", "licence")
Text = Annotated[str, Body(embed=True, max_length=20_000)]


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ValueError: the host is not loopback. OSError: the port is taken.
    """
    if not is_loopback(host):
        raise ValueError(
            f"--host {host}: loopback only, as nobody is asked for a password; accepted: 127.0.0.1, ::1, localhost "
            "(from elsewhere: ssh -L PORT:127.0.0.1:PORT)"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    return listener


def create_app(reviews: Reviews, queue: Sequence[str], title: str) -> FastAPI:
    """The page over a queue.

    Args:
        reviews: samples and decisions.
        queue: ids to look at, in order.
        title: what is reviewed, for the head of the page.
    """
    app = FastAPI(title="SlideReason review", docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_guard)
    for path, (name, kind) in _FILES.items():
        content = files("model.chains").joinpath("static", name).read_bytes()
        app.add_api_route(path, _static(content, kind), methods=["GET"])

    def sample(index: int) -> str:
        if not 0 <= index < len(queue):
            raise HTTPException(404, f"no sample {index}; 0 to {len(queue) - 1} are accepted")
        return queue[index]

    @app.exception_handler(ReviewError)
    def refused(_: Request, error: ReviewError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(ValueError)
    def broken(_: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 500)

    @app.get("/api/queue")
    def read_queue() -> dict[str, Any]:
        states = [reviews.decision(row_id).state for row_id in queue]
        first = states.index("unreviewed") if "unreviewed" in states else 0
        return {
            "title": title, "states": states, "progress": reviews.progress(queue), "first": first,
            "location_words": sorted(SPATIAL_WORDS),
        }  # fmt: skip

    @app.get("/api/samples/{index}")
    def read_sample(index: int) -> dict[str, Any]:
        return describe_sample(reviews, sample(index), index)

    @app.get("/api/samples/{index}/image.png")
    def read_image(index: int) -> Response:
        picture = reviews.rows[sample(index)].read_image()
        _, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        return Response(png.tobytes(), media_type="image/png")

    @app.post("/api/samples/{index}/check")
    def check(index: int, chain: Text) -> dict[str, Any]:
        return _found(reviews.problems(sample(index), " ".join(chain.split())))

    @app.post("/api/samples/{index}/decision")
    def decide(
        index: int, state: Text, chain: Annotated[str | None, Body(max_length=20_000)] = None,
        note: Annotated[str, Body(max_length=2_000)] = "",
    ) -> dict[str, Any]:  # fmt: skip
        reviews.decide(sample(index), state, chain, note)
        return {"state": reviews.decision(queue[index]).state, "progress": reviews.progress(queue)}

    @app.post("/api/undo")
    def undo() -> dict[str, Any]:
        row_id = reviews.undo()
        if row_id is None:
            raise HTTPException(409, "there is no decision to take back")
        index = queue.index(row_id) if row_id in queue else None
        return {"index": index, "state": reviews.decision(row_id).state, "progress": reviews.progress(queue)}

    return app


async def _guard(request: Request, call_next) -> Response:
    """Refuse foreign hosts and pages; add the headers."""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    origin = request.headers.get("origin")
    if not is_loopback(host):
        response: Response = JSONResponse({"detail": "only loopback hosts are served"}, 421)
    elif origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        response = JSONResponse({"detail": "only the review page itself may call this"}, 403)
    elif request.method == "POST" and request.headers.get("content-type", "").split(";")[0] != "application/json":
        response = JSONResponse({"detail": "application/json is accepted"}, 415)
    else:
        response = await call_next(request)
    response.headers.update(_HEADERS)
    return response


def _static(content: bytes, kind: str):
    """A route that answers with a file of ours."""
    return lambda: Response(content, media_type=kind)


def describe_sample(reviews: Reviews, row_id: str, index: int) -> dict[str, Any]:
    """Everything the page shows of one sample."""
    row, decision, truth = reviews.rows[row_id], reviews.decision(row_id), reviews.truth(row_id)
    height, width = row.read_image().shape[:2]
    structures = structures_to_tell(truth)
    masks = row.read_masks()
    shown = row.targets or [seen.key for seen in structures if seen.key in masks]
    return {
        "index": index, "id": row_id, "query": row.query, "chain": decision.chain, "written": row.chain,
        "state": decision.state, "reviewer": decision.reviewer, "time": decision.time, "note": decision.note,
        "stale": decision.stale, "kind": row.kind, "generator": row.provenance.get("generator"),
        "targets": [name_of(key) for key in row.targets], "width": width, "height": height,
        "about": {name: row.data[name] for name in _TOLD if row.data.get(name)},
        "outlines": [
            {"name": name_of(key), "target": key in row.targets, "path": outline_path(masks[key])} for key in shown
        ],
        "measured": [
            {"name": name_of(seen.key), "target": seen.key in row.targets, "rows": measurements(seen)}
            for seen in structures
        ],
        **_found(reviews.problems(row_id)),
    }  # fmt: skip


def _found(problems: Sequence[Problem]) -> dict[str, Any]:
    """Problems, and whether they stand in the way of a decision."""
    told = [problem.to_json() | {"blocking": problem.code in BLOCKING} for problem in problems]
    return {"problems": told, "blocked": any(problem["blocking"] for problem in told)}


def outline_path(mask: np.ndarray) -> str:
    """The rim of an (H, W) bool mask as the `d` of an SVG path, in pixels."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    simple = (cv2.approxPolyDP(contour, 0.6, True)[:, 0] for contour in contours if len(contour) > 2)
    return "".join(f"M{' '.join(f'{x + 0.5} {y + 0.5}' for x, y in points)}Z" for points in simple)
