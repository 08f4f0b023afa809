"""Logs of a gateway process: ours and the server's in one form."""

import logging

from service.settings import Settings
from worker.logs import setup_logs


def setup_logs_of(settings: Settings) -> None:
    """Log as the settings say; uvicorn's own lines too, which it would else write in a form of its own."""
    setup_logs(settings.log_format, settings.log_level)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)  # the metrics count requests
