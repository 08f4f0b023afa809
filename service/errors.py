"""Every error a client sees: `application/problem+json` (RFC 9457) with a stable `code`, from one table."""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.schemas import JobRequest, SlideRequest
from worker import errors
from worker.logs import log_context

log = logging.getLogger("slidereason.service")

MEDIA_TYPE = "application/problem+json"

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that is being answered, as `X-Request-ID` names it."""

# exception → HTTP status; the first class that matches wins, so children stand before their parents
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (errors.SlideNotFound, 404),
    (errors.SlideForbidden, 403),
    (errors.SlideUnreadable, 422),
    (errors.SlideFetching, 409),
    (errors.SlideFetchFailed, 422),
    (errors.MppUnknown, 422),
    (errors.TooLarge, 413),
    (errors.BadRequest, 422),
    (errors.JobNotFound, 404),
    (errors.JobExpired, 410),
    (errors.JobConflict, 409),
    (errors.QueueFull, 429),
    (errors.StorageAway, 503),
)

AWAY_RETRY_S = 5

# HTTP status → code of the errors that the framework itself raises
CODES = {
    400: "malformed-request",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    413: "too-large",
    415: "unsupported-media-type",
    416: "range-not-satisfiable",
    421: "host-not-allowed",
    422: "bad-request",
    429: "queue-full",
    500: "internal",
    503: "not-ready",
}


# path → body that a POST there takes, to say which fields there are
BODIES: dict[str, type[BaseModel]] = {"/v1/jobs": JobRequest, "/v1/slides": SlideRequest}


class Problem(Exception):
    """An answer that is an error.

    Attributes:
        status: HTTP status. code: stable, for programs. detail: one sentence for people: what is wrong, what would be
            accepted. field: the input at fault. headers: further response headers. more: further members.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ):
        super().__init__(detail)
        self.status, self.code, self.detail, self.field = status, code, detail, field
        self.headers, self.more = dict(headers or {}), more


def problem_response(problem: Problem) -> JSONResponse:
    """The problem as a response body with its headers."""
    body: dict[str, Any] = {
        "type": f"urn:slidereason:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail,
    }
    if problem.field:
        body["field"] = problem.field
    if request_id.get():
        body["request_id"] = request_id.get()
    body.update({name: value for name, value in problem.more.items() if value is not None})
    headers = {"Cache-Control": "no-store", **problem.headers}
    return JSONResponse(body, problem.status, headers=headers, media_type=MEDIA_TYPE)


def away(what: str) -> Problem:
    """503 for a part of the service that does not answer now and may soon: `database`, `storage`."""
    detail = f"the {what} is away; nothing is lost, try again in {AWAY_RETRY_S} s"
    return Problem(503, f"{what}-away", detail, headers={"Retry-After": str(AWAY_RETRY_S)})


def is_away(error: BaseException) -> bool:
    """Whether a database error says that the database cannot be reached or used now, and not that we asked amiss."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, (OperationalError, InterfaceError, PoolTimeout, TimeoutError))


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem."""
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(errors.SlideReasonError, _answer_domain)
    app.add_exception_handler(SQLAlchemyError, _answer_database)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unexpected)


def problem_of(error: errors.SlideReasonError) -> Problem:
    """The problem that a domain error becomes; an error that is no fault of the client becomes a bare 500."""
    for kind, status in STATUS:
        if isinstance(error, kind):
            if status in (403, 404) and (error.field or "").startswith("exemplar."):
                status = 422  # the job's own slide is what a request is about; an exemplar is a field of it
            headers, more = {}, {}
            if isinstance(error, (errors.SlideFetching, errors.SlideFetchFailed)):
                more["slide_id"] = error.subject
            if isinstance(error, (errors.QueueFull, errors.SlideFetching)):
                headers["Retry-After"] = str(error.retry_after_s)
            if isinstance(error, errors.StorageAway):
                log.warning("the storage is away: %s", error)
                return away("storage")
            return Problem(status, error.code, error.message, field=error.field, headers=headers, **more)
    log.error("unexpected domain error", exc_info=error)
    return Problem(500, "internal", "the server failed; the error has been logged")


async def _answer_problem(request: Request, error: Problem) -> JSONResponse:
    return problem_response(error)


async def _answer_domain(request: Request, error: errors.SlideReasonError) -> JSONResponse:
    return problem_response(problem_of(error))


async def _answer_database(request: Request, error: SQLAlchemyError) -> JSONResponse:
    """The database is away: 503; anything else that it says is our fault."""
    if not is_away(error):
        return await _answer_unexpected(request, error)
    log.warning("the database is away: %s", str(error).partition("\n")[0])
    return problem_response(away("database"))


async def _answer_http(request: Request, error: HTTPException) -> JSONResponse:
    """404 of unknown routes, 405, and what the framework raises while it parses a body."""
    details = {
        400: "the body could not be read; send valid JSON in UTF-8",
        404: "there is nothing at this address; /openapi.json lists every route",
    }
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(allowed_methods(request))
        details[405] = f"{request.method} is not accepted here; accepted: {headers['Allow']}"
    code = CODES.get(error.status_code, "error")
    detail = details.get(error.status_code, str(error.detail))
    return problem_response(Problem(error.status_code, code, detail, headers=headers))


def allowed_methods(request: Request) -> list[str]:
    """Methods of every route at this address (the framework names those of the first one only)."""
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    return [name for name in methods if _has_route(request, name)]


def _has_route(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)


async def _answer_validation(request: Request, error: RequestValidationError) -> JSONResponse:
    """422 that names each field at fault and what it would accept; never repeats what was sent."""
    found = []
    for item in error.errors():
        if item["type"] == "json_invalid":
            return problem_response(Problem(400, "malformed-json", "the body is not valid JSON; send a JSON object"))
        found.append({"field": field_name(item["loc"]), "detail": accepted(item, BODIES.get(request.url.path))})
    first = found[0] if found else {"field": None, "detail": "the request is not accepted"}
    detail = "; ".join(f"{entry['field']}: {entry['detail']}" for entry in found[:5]) or first["detail"]
    return problem_response(Problem(422, "bad-request", detail, field=first["field"], errors=found))


def field_name(location: tuple) -> str:
    """`("body", "queries", 0)` → `queries[0]`."""
    name = ""
    for part in location[1:] if location and location[0] in ("body", "query", "path", "header") else location:
        # names of unknown fields come from the client: cut, so that an answer cannot be made huge
        name += f"[{part}]" if isinstance(part, int) else ("." if name else "") + str(part)[:60]
    return name or "body"


def accepted(item: Mapping[str, Any], body: type[BaseModel] | None = None) -> str:
    """What pydantic found wrong, and what the body would accept."""
    if item["type"] == "extra_forbidden":
        known = body and fields_at(body, item["loc"])
        return f"unknown field; accepted: {', '.join(known) if known else 'see /openapi.json'}"
    if item["type"] == "missing":
        return "required"
    if item["type"] in ("model_type", "model_attributes_type"):
        known = body and _fields_in(body, item["loc"][1:])
        return "it must be one JSON object" + (f" with the fields {', '.join(known)}" if known else "")
    message = str(item["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def fields_at(body: type[BaseModel], location: tuple) -> list[str]:
    """Names of the fields beside the last of `("body", "exemplar", "colour")`."""
    return _fields_in(body, location[1:-1])


def _fields_in(body: type[BaseModel], location: tuple) -> list[str]:
    """Names of the fields of what lies at `("exemplar",)` in a body."""
    for part in location:
        kinds = (body.model_fields[part].annotation, *get_args(body.model_fields[part].annotation))
        body = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(body.model_fields)


async def _answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    """Whatever was not foreseen: logged here, a bare 500 outside."""
    with log_context(request_id=request_id.get()):  # the middleware that said so has been left by now
        where = getattr(request.scope.get("route"), "path", "?")
        log.error("unexpected error answering %s %s", request.method, where, exc_info=error)
    named = {"X-Request-ID": request_id.get()} if request_id.get() else {}
    return problem_response(Problem(500, "internal", "the server failed; the error has been logged", headers=named))
