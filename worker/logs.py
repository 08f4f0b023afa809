"""Logs: a line per event, as text or as JSON, that says of which job and unit of work it speaks. Torch-free."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO

from worker.errors import BadRequest

FORMATS = ("text", "json")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
SHORT = {"job_id": "job", "worker_id": "worker"}

_context: ContextVar[Mapping[str, str]] = ContextVar("log_context", default=MappingProxyType({}))


@contextmanager
def log_context(**names: object) -> Iterator[None]:
    """Every line logged inside, by this thread or task, carries these names.

    Args:
        names: such as `job`, `unit`, `worker`, `request_id` (`job_id` and `worker_id` are taken as `job` and
            `worker`); None takes a name out.
    """
    merged = {**_context.get(), **{SHORT.get(name, name): value for name, value in names.items()}}
    token = _context.set({name: str(value) for name, value in merged.items() if value is not None})
    try:
        yield
    finally:
        _context.reset(token)


def setup_logs(format: str = "text", level: str = "INFO", stream: TextIO | None = None, **always: object) -> None:
    """Send all logs of the process to one stream; may be called again.

    Args:
        format: `text`, or `json`: one object a line, with `ts` (UTC, ISO 8601), `level`, `logger`, `message`, what
            `log_context` says, and `exc` (the traceback) where there was one.
        level: lines below it are left out.
        stream: stderr by default.
        always: names that every line carries, such as `worker`.

    Raises:
        BadRequest: the format or level is not known; `field` names which.
    """
    if format not in FORMATS:
        raise BadRequest(f"log_format {format!r} is not known; accepted are {', '.join(FORMATS)}", field="log_format")
    if level.upper() not in LEVELS:
        raise BadRequest(f"log_level {level!r} is not known; accepted are {', '.join(LEVELS)}", field="log_level")
    handler = logging.StreamHandler(stream or sys.stderr)
    names = {SHORT.get(name, name): str(value) for name, value in always.items()}
    handler.setFormatter(JsonLines(names) if format == "json" else TextLines(names))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO worker.tasks [job=… unit=…] message`."""

    def __init__(self, always: Mapping[str, str]):
        super().__init__("%(asctime)s %(levelname)s %(name)s%(names)s %(message)s")
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        names = {**self._always, **_context.get()}
        record.names = f" [{' '.join(f'{name}={value}' for name, value in names.items())}]" if names else ":"
        return super().format(record)


class JsonLines(logging.Formatter):
    """One JSON object a line, whatever the message holds."""

    def __init__(self, always: Mapping[str, str]):
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
            **_context.get(),
        }
        if record.exc_info:
            line["exc"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
