"""Tickets: empty Celery messages that say "there is something in the ledger". Torch-free.

A lost ticket is reissued by the sweeper and a double one finds nothing to claim, so nothing here has to be safe.
"""

from celery import Celery

TASK = "slidereason.ticket"

VISIBILITY_TIMEOUT_S = 3600
"""After this an unacknowledged ticket is delivered again. Units last seconds, and the ledger's leases notice a lost
worker long before, so it only has to be longer than any unit."""


def queue_name(model: str) -> str:
    """The queue of one segmenter's tickets, so that a ticket never reaches a worker that cannot use it."""
    return f"slidereason.{model}"


def make_app(broker_url: str) -> Celery:
    """A Celery app on a broker.

    Args:
        broker_url: `redis://…`, or `redis+socket:///path/redis.sock` for a redis on a unix socket.
    """
    app = Celery("slidereason", broker=broker_url, set_as_current=False)
    timeouts = {"visibility_timeout": VISIBILITY_TIMEOUT_S}
    app.conf.update(
        visibility_timeout=VISIBILITY_TIMEOUT_S,
        # A broker that is away must not hang a request: connecting and sending give up after seconds.
        broker_transport_options={
            **timeouts,
            "unacked_restore_interval": 5,
            "socket_connect_timeout": 5,
            "socket_timeout": 20,
            "max_retries": 1,
        },
        result_backend_transport_options=timeouts,
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_pool="threads",
        # A worker waits for its broker for as long as it takes; meanwhile it looks into the ledger itself.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        task_serializer="json",
        accept_content=["json"],
    )
    return app


def submit(app: Celery, model: str, count: int = 1) -> None:
    """Send empty tickets.

    Args:
        app: from `make_app`.
        model: name of the segmenter whose workers are meant.
        count: how many units can be claimed.

    Raises:
        kombu.exceptions.OperationalError: the broker is away. The job is safe in the ledger; the sweeper sends tickets
            when the broker is back.
    """
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            app.send_task(TASK, queue=queue_name(model), producer=producer, retry=False)


def ping(app: Celery) -> None:
    """Raise when the broker is away."""
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        connection.default_channel.client.ping()


def depth(app: Celery, model: str) -> int:
    """How many tickets wait in a model's queue."""
    with app.connection_for_write() as connection:
        return connection.default_channel.client.llen(queue_name(model))
