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
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from celery import Celery
from celery.platforms import SecurityWarning
from celery.signals import setup_logging
from celery.worker import state as celery_state

from model.segmenter import Segmenter
from worker import queue
from worker.artifacts import open_artifacts
from worker.destinations import GIVE_UP_S, read_destinations
from worker.drain import Drain
from worker.engine import Engine
from worker.errors import BadRequest, SlideReasonError, TileFailed
from worker.health import HealthServer, Vitals
from worker.housekeeper import POLL_S, Housekeeper, Poller
from worker.ledger import Ledger
from worker.logs import setup_logs
from worker.sender import POLL_S as SENDER_POLL_S
from worker.sender import Sender
from worker.tasks import Runner, register_ticket
from worker.tracing import setup_tracing, stop_tracing
from worker.watchdog import Watchdog, memory_limit

log = logging.getLogger(__name__)

BAD_INPUT = 2
DAY_S = 86_400.0
PARENT_GONE_GRACE_S = 20.0
PR_SET_PDEATHSIG = 1

ALIASES = {"block_threads": "SLIDEREASON_THREADS"}
"""Settings with a second name in the environment, which `serve` uses too."""

LEAST = {
    "block_threads": 1, "max_batch": 1, "lease_s": 0.1, "sweep_s": 0.1, "drain_s": 0, "memory_limit_bytes": 0,
    "health_port": 0, "retention_days": 0, "parent_pid": 0, "deliver_give_up_s": 1,
}  # fmt: skip
"""The smallest value of each number."""

DELIVERING = (
    "callback_hosts", "callback_inside_hosts", "webhook_secret", "dicomweb_url", "dicomweb_token", "fhir_url",
    "fhir_token", "deliver", "deliver_give_up_s",
)  # fmt: skip
"""Settings of `worker.destinations`."""

DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know; every field is also an environment variable `SLIDEREASON_{FIELD}`.

    Attributes:
        broker_url, database_url: where tickets and truth are.
        artifacts: the jobs' artifacts: a folder, or `s3://bucket/prefix`.
        scratch: folder for work in progress where artifacts are not local; empty is a private temporary one.
        model: name of the segmenter, or `module:factory`.
        block_threads: blocks worked on at once (in the environment also SLIDEREASON_THREADS).
        max_batch: tiles per call of the model.
        device: where the model computes: `auto`, `cpu`, `cuda` or `cuda:N`.
        lease_s: how long a claimed unit or delivery stays owned without renewal; the same in every worker.
        sweep_s: seconds between sweeps.
        drain_s: how long running blocks get to finish after SIGTERM; then they are handed back.
        memory_limit_bytes: resident memory from which on the worker drains and ends with 75, to be started again; 0 is
            90 % of the control group's limit, where there is one.
        health_host, health_port: where /healthz, /readyz and /metrics are answered; port 0 is nowhere.
        retention_days: how long ended jobs are kept; 0 is for ever. The same in every worker.
        log_format: `text` or `json`.
        log_level: `DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`.
        parent_pid: stop when this process is gone; 0 means stay.
        callback_hosts, callback_inside_hosts: whom webhooks may call, see `worker.outbound.Outbound`; comma-separated.
        webhook_secret: what webhooks are signed with, `whsec_…`; empty sends none.
        dicomweb_url, dicomweb_token, fhir_url, fhir_token: where results are pushed to, and bearer tokens.
        deliver: where the results of every job go: `dicomweb`, `fhir` or both, comma-separated.
        deliver_give_up_s: seconds after the first try from which a delivery is not tried again.
    """

    broker_url: str
    database_url: str
    artifacts: str
    scratch: str = ""
    model: str = "tiny"
    block_threads: int = 2
    max_batch: int = 64
    device: str = "auto"
    lease_s: float = 30.0
    sweep_s: float = 60.0
    drain_s: float = 25.0
    memory_limit_bytes: int = 0
    health_host: str = "127.0.0.1"
    health_port: int = 0
    retention_days: float = 0.0
    log_format: str = "text"
    log_level: str = "INFO"
    parent_pid: int = 0
    callback_hosts: str = ""
    callback_inside_hosts: str = ""
    webhook_secret: str = field(default="", repr=False)
    dicomweb_url: str = ""
    dicomweb_token: str = field(default="", repr=False)
    fhir_url: str = ""
    fhir_token: str = field(default="", repr=False)
    deliver: str = ""
    deliver_give_up_s: float = GIVE_UP_S

    def to_environment(self) -> dict[str, str]:
        """The settings as environment variables; `from_environment` is the inverse."""
        return {f"SLIDEREASON_{name.upper()}": str(value) for name, value in vars(self).items()}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "WorkerSettings":
        """Read the settings.

        Raises:
            BadRequest: a variable is missing, is no number where one is wanted, or is too small; `field` names it.
        """
        values = {}
        for name, kind in cls.__annotations__.items():
            variable = f"SLIDEREASON_{name.upper()}"
            if variable not in environment and name in ALIASES:
                variable = ALIASES[name]
            if variable in environment:
                values[name] = _number_or_text(kind, environment[variable], variable, LEAST.get(name))
            elif name in ("broker_url", "database_url", "artifacts"):
                raise BadRequest(f"{variable} must be set", field=variable)
        return cls(**values)


def _number_or_text(kind: type, text: str, variable: str, least: float | None) -> str | int | float:
    try:
        value = kind(text)
    except ValueError as error:
        raise BadRequest(f"{variable} must be of type {kind.__name__}, not {text!r}", field=variable) from error
    if least is not None and not least <= value < float("inf"):
        raise BadRequest(f"{variable} must be at least {least}, not {text}", field=variable)
    return value


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


def require_device(device: str) -> None:
    """Check that a device is there, before anything is loaded.

    Raises:
        BadRequest: it is not; the message says what is.
    """
    if not DEVICE.fullmatch(device):
        raise BadRequest(f"device {device!r} is not known; accepted are auto, cpu, cuda and cuda:N", field="device")
    if device in ("auto", "cpu"):
        return
    try:
        import torch
    except ImportError as error:
        text = f"device {device!r}: torch is not installed; accepted here are auto and cpu"
        raise BadRequest(text, field="device") from error
    here = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    if device not in (*here, *(["cuda"] if here else [])):
        accepted = ", ".join(["auto", "cpu", *here])
        raise BadRequest(f"device {device!r} is not there; accepted here are {accepted}", field="device")


def run_worker(settings: WorkerSettings) -> int:
    """Serve tickets until a signal says stop.

    Returns:
        Exit code: 0 after SIGTERM, SIGINT or SIGHUP; 75 when memory ran short and 70 when the engine died or hung, both
        after a drain: whoever watches should start it again.

    Raises:
        BadRequest: a setting is not accepted; `field` names it.
        TileFailed: the model does not even run on a blank tile.
    """
    worker_id = f"{socket.gethostname()[:24]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    setup_logs(settings.log_format, settings.log_level, worker=worker_id)
    if settings.parent_pid:
        _die_with(settings.parent_pid, settings.drain_s + PARENT_GONE_GRACE_S)
    drain = Drain(settings.drain_s, _consume_no_more)
    drain.install_signals()
    vitals = Vitals(worker_id, drain)
    require_device(settings.device)
    setup_tracing("slidereason-worker")
    with ExitStack() as parts:
        parts.callback(stop_tracing)
        if settings.health_port:
            parts.enter_context(HealthServer(vitals, settings.health_host, settings.health_port))
        code = _serve(settings, vitals, parts)
    drain.ended()
    return drain.exit_code or code


def _serve(settings: WorkerSettings, vitals: Vitals, parts: ExitStack) -> int:
    destinations = read_destinations(**{name: getattr(settings, name) for name in DELIVERING})
    ledger = Ledger(settings.database_url, lease_s=settings.lease_s, push=destinations.push)
    parts.callback(ledger.close)
    artifacts = open_artifacts(settings.artifacts, settings.scratch or None)
    parts.callback(artifacts.close)
    segmenter = load_segmenter(settings.model, settings.device)
    engine = vitals.engine = parts.enter_context(Engine(segmenter, max_batch=settings.max_batch))
    _warm_up(engine)
    app = queue.make_app(settings.broker_url)
    models = tuple(dict.fromkeys((settings.model, segmenter.card.name)))
    runner = vitals.runner = Runner(
        ledger, artifacts, engine, vitals.worker_id, models,
        send_tickets=lambda model, count: queue.submit(app, model, count), most=settings.block_threads,
    )  # fmt: skip
    register_ticket(app, runner)
    retention_s = settings.retention_days * DAY_S or None
    housekeeper = Housekeeper(runner, app, settings.sweep_s, retention_s)
    vitals.drain.watch_over(runner, housekeeper)
    limit_bytes = memory_limit(settings.memory_limit_bytes)
    parts.enter_context(Watchdog(vitals, limit_bytes))
    poller = Poller(runner, app, settings.block_threads, min(POLL_S, settings.sweep_s))
    sender = Sender(
        ledger, artifacts, vitals.worker_id, destinations, runner.stopping,
        wake=lambda model: queue.submit(app, model), period_s=min(SENDER_POLL_S, settings.sweep_s),
    )  # fmt: skip
    housekeeper.start()
    poller.start()
    sender.start()
    vitals.housekeeper = housekeeper
    log.info("serves %s with %d block threads, memory limit %s", ", ".join(models), settings.block_threads, limit_bytes)
    try:
        return _consume(app, vitals.worker_id, models, settings.block_threads)
    finally:
        sender.stop()
        poller.stop()
        housekeeper.stop()
        app.close()


def _warm_up(engine: Engine) -> None:
    try:
        took_s = engine.warm_up()
    except (TileFailed, MemoryError) as error:
        raise TileFailed(f"model {engine.card.name!r} does not run here: {error}", field="model") from error
    log.info("%s, revision %s, is warm after %.1f s", engine.card.name, engine.card.revision, took_s)


def _consume(app: Celery, worker_id: str, models: tuple[str, ...], threads: int) -> int:
    """Take tickets until `_consume_no_more`; the broker may come and go."""

    class Consumer(app.Worker):
        def install_platform_tweaks(self, worker) -> None:
            """Signals belong to the drain."""

    setup_logging.connect(_leave_logs_alone)
    logging.getLogger("celery").setLevel(logging.WARNING)
    # A ticket is empty JSON, so that nothing in it can run, whoever the worker runs as.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    warnings.filterwarnings("ignore", category=PendingDeprecationWarning, module="celery")
    consumer = Consumer(
        hostname=f"{worker_id}@slidereason",
        pool="threads",
        concurrency=threads,
        queues=[queue.queue_name(model) for model in models],
        loglevel="WARNING",
        redirect_stdouts=False,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    consumer.start()
    return consumer.exitcode or 0


def _consume_no_more(exit_code: int) -> None:
    """Celery sees this within a second, wherever it is."""
    celery_state.should_stop = exit_code


def _leave_logs_alone(**_) -> None:
    """Celery sets up logging unless somebody listens to this signal."""


def _die_with(parent_pid: int, grace_s: float) -> None:
    """Stop when the parent is gone, however it went: a worker must not outlive the service it belongs to."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def watch() -> None:
        waiting = threading.Event()
        while os.getppid() == parent_pid:
            waiting.wait(2.0)
        os.kill(os.getpid(), signal.SIGTERM)
        waiting.wait(grace_s)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main() -> int:
    """Run a worker as the environment says.

    Returns:
        As `run_worker`; 2 when a setting is not accepted, 1 when the worker cannot start, both said on stderr.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return run_worker(WorkerSettings.from_environment())
    except SlideReasonError as error:
        print(f"slidereason worker: {error}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, BadRequest) else 1


if __name__ == "__main__":
    sys.exit(main())
