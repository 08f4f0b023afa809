"""A worker or a gateway whose broker delivers everything twice: each message is put into its queue two times."""

import sys

from kombu.transport.redis import Channel

from service.app import create_app
from worker.worker_main import main

__all__ = ["create_app"]

_put = Channel._put


def _put_twice(self: Channel, queue: str, message: dict, **more: object) -> None:
    _put(self, queue, message, **more)
    _put(self, queue, message, **more)


Channel._put = _put_twice

if __name__ == "__main__":
    sys.exit(main())
