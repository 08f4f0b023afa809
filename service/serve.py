"""`slidereason serve`: gateway, one worker subprocess and a broker, until told to stop."""

import argparse
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from service.app import create_app
from service.process_logs import setup_logs_of
from service.process_memory import settle
from service.settings import Settings, read_settings
from worker.embedded import Embedded, start
from worker.errors import SlideReasonError
from worker.tracing import setup_tracing, stop_tracing

GRACE_S = 5
KEEP_ALIVE_S = 75
"""Longer than a poller is ever told to wait, and than load balancers keep a connection."""


class Stop(BaseException):
    """SIGTERM or SIGINT arrived; not an Exception, so that nothing on the way swallows it."""


def run(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; afterwards no process is left.

    Args:
        argv: the arguments after `serve`.

    Returns:
        Exit code: 0 stopped as asked, 2 an option is not accepted, 1 something did not start.
    """
    given = _parser().parse_args(argv)
    try:
        settings = read_settings(**vars(given))
    except ValueError as error:
        print(f"slidereason serve: {error}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        with contextlib.closing(_listen(settings)) as listener:
            return _serve(settings, listener)
    except Stop:
        return 0
    except (OSError, SlideReasonError, ValueError) as error:
        print(f"slidereason serve: {error}", file=sys.stderr)
        return 1


def _serve(settings: Settings, listener: socket.socket) -> int:
    setup_logs_of(settings)
    setup_tracing("slidereason-gateway")
    embedded = _start(settings)
    try:
        app = create_app(_completed(settings, embedded))
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=GRACE_S, timeout_keep_alive=KEEP_ALIVE_S,
        )  # fmt: skip
        server = uvicorn.Server(config)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        folders = len(settings.slides)
        print(
            f"SlideReason serves http://{host}:{port}/ ({folders} slide folder{'s' * (folders != 1)})", flush=True
        )
        settle()
        server.run(sockets=[listener])
        return 0 if server.started else 1
    finally:
        # a second signal must not interrupt the clean-up that leaves no process behind
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        embedded.stop()
        stop_tracing()


def _start(settings: Settings) -> Embedded:
    return start(
        settings.data,
        model=settings.model,
        threads=settings.threads,
        broker_url=settings.broker_url,
        database_url=settings.database_url,
        artifacts=settings.artifacts,
        more=settings.of_deliveries,
    )


def _completed(settings: Settings, embedded: Embedded) -> Settings:
    """The settings with what the embedded parts answer to."""
    return settings.model_copy(
        update={
            "broker_url": embedded.broker_url,
            "database_url": embedded.database_url,
            "artifacts": embedded.artifacts,
        }
    )


def _listen(settings: Settings) -> socket.socket:
    """Take the port before anything is started, so that a taken one costs nothing."""
    kind = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(kind, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
        listener.listen(128)  # whoever connects while the rest starts waits instead of being refused
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {settings.host}:{settings.port}: {os.strerror(error.errno or 0)}") from None
    return listener


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stop


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slidereason serve",
        description="Gateway, one worker and a broker. Each option is also SLIDEREASON_<NAME> in the environment.",
    )
    parser.add_argument("--host", help="loopback address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port (8000; 0: any free one)")
    parser.add_argument(
        "--slides", type=Path, nargs="+", action="extend", metavar="DIR", help="folders whose slides may be referred to"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of ledger, uploads and results")
    parser.add_argument("--model", help="segmenter of the worker (tiny)")
    parser.add_argument("--threads", type=int, help="block threads of the worker (2)")
    parser.add_argument("--broker-url", help="a Celery broker instead of the embedded one")
    parser.add_argument("--database-url", help="an SQLAlchemy URL instead of SQLite in --data")
    parser.add_argument("--artifacts", metavar="DIR", help="folder of results instead of one in --data")
    return parser
