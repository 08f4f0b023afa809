"""A worker process: one segmenter on one engine thread, a few block threads fed by tickets.

`python -m worker.worker_main` reads SLIDEREASON_… from the environment; `slidereason worker` takes options as well.
"""

import ctypes
import logging
import os
import re
import signal
import socket
import sys
import threading
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from celery.platforms import SecurityWarning
from celery.signals import worker_shutting_down

from model.segmenter import Segmenter
from worker import queue
from worker.artifacts import LocalArtifacts
from worker.engine import Engine
from worker.errors import BadRequest
from worker.ledger import Ledger
from worker.tasks import Housekeeper, Runner, register_ticket

log = logging.getLogger(__name__)

PARENT_GONE_GRACE_S = 20.0
PR_SET_PDEATHSIG = 1
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know; every field is also an environment variable `SLIDEREASON_{FIELD}`.

    Attributes:
        broker_url, database_url: where tickets and truth are.
        artifacts: folder of the jobs' artifacts.
        model: name of the segmenter, or `module:factory`.
        threads: blocks worked on at once.
        max_batch: tiles per call of the model.
        device: where the model computes: `auto`, `cpu`, `cuda` or `cuda:N`.
        lease_s: how long a claimed unit stays owned without renewal; the same in every worker.
        sweep_s: seconds between sweeps.
        parent_pid: stop when this process is gone; 0 means stay.
    """

    broker_url: str
    database_url: str
    artifacts: str
    model: str = "tiny"
    threads: int = 2
    max_batch: int = 64
    device: str = "auto"
    lease_s: float = 30.0
    sweep_s: float = 60.0
    parent_pid: int = 0

    def to_environment(self) -> dict[str, str]:
        """The settings as environment variables; `from_environment` is the inverse."""
        return {f"SLIDEREASON_{name.upper()}": str(value) for name, value in vars(self).items()}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "WorkerSettings":
        """Read the settings.

        Raises:
            BadRequest: a variable is missing or is no number where one is wanted; `field` names it.
        """
        values = {}
        for name, kind in cls.__annotations__.items():
            variable = f"SLIDEREASON_{name.upper()}"
            if variable in environment:
                try:
                    values[name] = kind(environment[variable])
                except ValueError as error:
                    raise BadRequest(f"{variable} must be of type {kind.__name__}", field=variable) from error
            elif name in ("broker_url", "database_url", "artifacts"):
                raise BadRequest(f"{variable} must be set", field=variable)
        return cls(**values)


def load_segmenter(name: str, device: str = "auto") -> Segmenter:
    """A segmenter by name.

    Args:
        name: a trained model's name or folder, or `module:factory` of a callable that returns a `Segmenter`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; told to whatever loads as `SLIDEREASON_DEVICE`.

    Raises:
        BadRequest: there is no such segmenter or device.
    """
    from model.cli import segmenter_by_name  # a trained one loads torch

    if not DEVICE.fullmatch(device):
        raise BadRequest(f"device {device!r} is not known; accepted are auto, cpu, cuda and cuda:N", field="device")
    os.environ["SLIDEREASON_DEVICE"] = device
    try:
        return segmenter_by_name(name)
    except (ValueError, FileNotFoundError, ImportError) as error:
        field = "device" if str(error).startswith("device ") else "model"
        raise BadRequest(f"model {name!r} cannot be loaded: {error}", field=field) from error


def run_worker(settings: WorkerSettings) -> int:
    """Serve tickets until a signal says stop.

    Returns:
        Exit code; 0 after SIGTERM or SIGINT.
    """
    if settings.parent_pid:
        _die_with(settings.parent_pid)
    # A ticket is empty JSON, so that nothing in it can run, whoever the worker runs as.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    app = queue.make_app(settings.broker_url)
    ledger = Ledger(settings.database_url, lease_s=settings.lease_s)
    worker_id = f"{socket.gethostname()[:24]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    segmenter = load_segmenter(settings.model, settings.device)
    models = tuple(dict.fromkeys((settings.model, segmenter.card.name)))
    with Engine(segmenter, max_batch=settings.max_batch) as engine:
        send = _ticket_sender(app)
        runner = Runner(ledger, LocalArtifacts(settings.artifacts), engine, worker_id, models, send)
        register_ticket(app, runner)
        worker_shutting_down.connect(lambda *_, **__: runner.stop(), weak=False)
        housekeeper = Housekeeper(runner, app, settings.sweep_s)
        housekeeper.start()
        log.info("worker %s serves %s with %d threads", worker_id, ", ".join(models), settings.threads)
        celery_worker = app.Worker(
            hostname=f"{worker_id}@slidereason",
            pool="threads",
            concurrency=settings.threads,
            queues=[queue.queue_name(model) for model in models],
            loglevel="WARNING",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
        )
        celery_worker.start()
        housekeeper.stop()
    ledger.close()
    return celery_worker.exitcode or 0


def _ticket_sender(app):
    return lambda model, count: queue.submit(app, model, count)


def _die_with(parent_pid: int) -> None:
    """Stop when the parent is gone, however it went: a worker must not outlive the service it belongs to."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def watch() -> None:
        waiting = threading.Event()
        while os.getppid() == parent_pid:
            waiting.wait(2.0)
        os.kill(os.getpid(), signal.SIGTERM)
        waiting.wait(PARENT_GONE_GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main() -> int:
    """Run a worker as the environment says."""
    level = os.environ.get("SLIDEREASON_LOG_LEVEL", "INFO").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return run_worker(WorkerSettings.from_environment())


if __name__ == "__main__":
    sys.exit(main())
