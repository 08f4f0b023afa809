"""The end of the process, noticed when it is asked for and not only when it comes.

uvicorn stops listening the moment it is told to, and waits for open requests: event streams would keep it, and load
balancers would still send clients. So SIGTERM first says "not ready" and ends the streams, and is passed on after a
delay in which load balancers look elsewhere.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("slidereason.service")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Draining:
    """Whether the process has been told to stop."""

    def __init__(self) -> None:
        self.begun = False

    @contextmanager
    def noticed(self, delay_s: float, begin: Callable[[], None]) -> Iterator[None]:
        """Listen for signals before the server does; in a thread other than the main one nothing is to be heard.

        Args:
            delay_s: from the first signal until the server hears of it; a second one is passed on at once.
            begin: called in the running event loop when it starts.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        servers = {number: signal.getsignal(number) for number in SIGNALS}

        def pass_on(number: int) -> None:
            handler = servers[number]
            if callable(handler):
                handler(number, None)
            else:
                signal.signal(number, handler)
                signal.raise_signal(number)

        def start(number: int) -> None:
            log.info("draining: told to stop by signal %d", number)
            begin()
            loop.call_later(delay_s, pass_on, number)

        def hear(number: int, frame: FrameType | None) -> None:
            if self.begun:
                loop.call_soon_threadsafe(pass_on, number)
            else:
                self.begun = True
                loop.call_soon_threadsafe(start, number)

        for number in SIGNALS:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, handler in servers.items():
                if signal.getsignal(number) is hear:
                    signal.signal(number, handler)
