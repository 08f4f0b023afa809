"""What is refused before any route runs: foreign hosts, bodies that are too large or of the wrong type."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Problem, problem_response

JSON = "application/json"
MULTIPART = "multipart/form-data"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
PROBES = ("/healthz", "/readyz", "/metrics")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

# path → media types that a POST there accepts
ACCEPTED_TYPES: Mapping[str, tuple[str, ...]] = {"/v1/jobs": (JSON,), "/v1/slides": (JSON, MULTIPART)}


class Limits:
    """ASGI middleware.

    Args:
        app: the application behind.
        max_body_bytes: largest JSON (or any other) body.
        max_upload_bytes: largest multipart body; a margin for its own headers is added.
        hosts: `Host` names answered to. A page elsewhere that rebinds its own name to 127.0.0.1 gets nothing.
        behind_proxy: only a proxy reaches us. Then probes may use our address as the name, and without `hosts` every
            name is answered to, since it is the proxy that knows its names.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        max_upload_bytes: int,
        hosts: tuple[str, ...],
        behind_proxy: bool = False,
    ):
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_upload_bytes = max_upload_bytes + 65536
        self.behind_proxy = behind_proxy
        self.any_host = behind_proxy and not hosts
        self.hosts = frozenset(name.lower() for name in (*LOOPBACK_NAMES, *hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a problem, or pass on with a counted body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        limit = self.max_upload_bytes if media_type(headers) == MULTIPART else self.max_body_bytes
        problem = self._refuse(scope, headers, limit)
        if problem:
            await problem_response(problem)(scope, receive, send)
            return
        await self._pass_on(scope, receive, send, limit)

    def _refuse(self, scope: Scope, headers: Mapping[str, str], limit: int) -> Problem | None:
        host = host_name(headers.get("host", ""))
        probe = self.behind_proxy and scope["path"] in PROBES and scope["method"] in SAFE_METHODS
        if not (host in self.hosts or self.any_host or probe):
            return Problem(421, "host-not-allowed", "this host name is not served here; use 127.0.0.1 or localhost")
        if scope["method"] not in SAFE_METHODS and not self._same_origin(headers.get("origin"), host):
            return Problem(403, "origin-not-allowed", "pages of other origins may not change anything here")
        wanted = ACCEPTED_TYPES.get(scope["path"]) if scope["method"] == "POST" else None
        if wanted and media_type(headers) not in wanted:
            detail = f"the body's Content-Type is not accepted; accepted: {', '.join(wanted)}"
            return Problem(415, "unsupported-media-type", detail, headers={"Accept-Post": ", ".join(wanted)})
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            return too_large(limit)
        return None

    def _same_origin(self, origin: str | None, host: str) -> bool:
        """A form on a page elsewhere can post without asking first; its Origin header gives it away."""
        name = host_name((origin or "").partition("://")[2])
        return origin is None or name in self.hosts or (self.any_host and name == host != "")

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Count a body that states no length (chunked) while it arrives."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # the framework's own exception: it passes through FastAPI's body parser, which hides every other
                raise HTTPException(413, too_large(limit).detail, headers={"Connection": "close"})
            return message

        await self.app(scope, counted, send)


def too_large(limit: int) -> Problem:
    """413 that states the limit."""
    return Problem(
        413, "too-large", f"the body is too large; up to {limit} bytes are accepted", headers={"Connection": "close"}
    )


def media_type(headers: Mapping[str, str]) -> str:
    """`Content-Type` without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def host_name(host: str) -> str:
    """`[::1]:8000` → `::1`."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
