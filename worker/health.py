"""What a worker says of itself: whether it lives, whether it is ready, with which model, and its metrics.

A small HTTP server for probes and for Prometheus; it answers while the model loads and while units run. Torch-free.
"""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from worker import metrics
from worker.errors import BadRequest

if TYPE_CHECKING:
    from worker.drain import Drain
    from worker.engine import Engine
    from worker.housekeeper import Housekeeper
    from worker.tasks import Runner

log = logging.getLogger(__name__)

HUNG_S = 1800.0
"""A call of the model that takes longer will not come back: the slowest batch on a CPU takes minutes."""

SILENT_S = 300.0
"""The housekeeper waits for a database that is away, and comes round every few seconds while it does."""

READ_TIMEOUT_S = 5.0
JSON = "application/json"
SERVED = "there are /healthz, /readyz and /metrics"


class Vitals:
    """The state of a worker, as its parts have it; each part is None until it is there.

    Args:
        worker_id: its name in the ledger.
        drain: tells whether it is about to end.
    """

    def __init__(self, worker_id: str, drain: "Drain"):
        self.worker_id = worker_id
        self.drain = drain
        self.engine: Engine | None = None
        self.runner: Runner | None = None
        self.housekeeper: Housekeeper | None = None

    def ailing(self) -> str | None:
        """Why the process should be ended and started again; None while it is well."""
        if self.engine is not None and not self.engine.alive:
            return "the engine's thread is dead"
        if self.engine is not None and self.engine.busy_s > HUNG_S:
            return f"a call of the model has taken {self.engine.busy_s:.0f} s"
        if self.housekeeper is not None and self.housekeeper.silent_s > SILENT_S:
            return f"the housekeeper has been silent for {self.housekeeper.silent_s:.0f} s"
        return None

    def status(self) -> str:
        """`ready`, or why not: `loading`, `draining`, `ailing`."""
        if self.drain.draining:
            return "draining"
        if self.ailing():
            return "ailing"
        return "loading" if self.housekeeper is None else "ready"

    def to_json(self) -> dict[str, Any]:
        """Status, the model with its revision, and how many units are in hand."""
        card = None if self.engine is None else self.engine.card
        return {
            "status": self.status(),
            "worker": self.worker_id,
            "model": None if card is None else {"name": card.name, "revision": card.revision},
            "serves": [] if self.runner is None else list(self.runner.models),
            "draining": self.drain.draining,
            "units": 0 if self.runner is None else self.runner.busy,
            "memory_bytes": metrics.resident_bytes(),
        }


class HealthServer:
    """Answers /healthz (200, or 503 when the process should be restarted), /readyz and /metrics; a context manager.

    Args:
        vitals: what is told.
        host: address to listen on.
        port: TCP port; 0 lets the system choose.

    Raises:
        BadRequest: the address is taken or not to be had; `field` is `health_port`.
    """

    def __init__(self, vitals: Vitals, host: str = "127.0.0.1", port: int = 0):
        kind = type("Handler", (_Handler,), {"vitals": vitals})
        family = {"address_family": AF_INET6 if ":" in host else AF_INET, "daemon_threads": True}
        try:
            self._server = type("Server", (ThreadingHTTPServer,), family)((host, port), kind)
        except (OSError, OverflowError) as error:
            raise BadRequest(f"cannot listen on {host} port {port}: {error}", field="health_port") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def __enter__(self) -> "HealthServer":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    vitals: Vitals
    timeout = READ_TIMEOUT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            ailing = self.vitals.ailing()
            self._json(503 if ailing else 200, {"status": "ailing" if ailing else "ok", "reason": ailing})
        elif path == "/readyz":
            told = self.vitals.to_json()
            self._json(200 if told["status"] == "ready" else 503, told)
        elif path == "/metrics":
            self._send(200, CONTENT_TYPE_LATEST, generate_latest(metrics.REGISTRY))
        else:
            self._json(404, {"status": "not found", "reason": SERVED})

    do_HEAD = do_GET

    def _json(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, JSON, json.dumps(body).encode() + b"\n")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        log.debug(format, *arguments)
