"""Tickets: empty, on a queue per model, and never the place where anything is kept."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from worker import embedded, queue


@pytest.fixture(scope="module")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded.start(tmp_path_factory.mktemp("broker"), workers=0) as service:
        yield service.broker_url


def test_tickets_wait_in_their_models_queue(broker_url: str):
    app = queue.make_app(broker_url)
    queue.submit(app, "one", count=3)
    queue.submit(app, "two")
    assert (queue.depth(app, "one"), queue.depth(app, "two"), queue.depth(app, "three")) == (3, 1, 0)
    app.close()


def test_a_ticket_says_nothing(broker_url: str):
    app = queue.make_app(broker_url)
    queue.submit(app, "silent")
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue(queue.queue_name("silent")).get(timeout=10)
        assert message.payload[:2] == [[], {}]
        assert message.headers["task"] == queue.TASK
        message.ack()
    app.close()


def test_a_broker_that_answers_is_alive(broker_url: str):
    app = queue.make_app(broker_url)
    queue.ping(app)
    app.close()


def test_a_broker_that_is_away_is_an_error_not_a_wait(tmp_path: Path):
    app = queue.make_app(f"redis+socket://{tmp_path / 'none.sock'}")
    for call in (lambda: queue.ping(app), lambda: queue.submit(app, "one")):
        with pytest.raises(OperationalError):
            call()
    app.close()


def test_the_visibility_timeout_is_set_in_all_three_places():
    app = queue.make_app("redis://localhost:1/0")
    places = (
        app.conf.visibility_timeout,
        app.conf.broker_transport_options["visibility_timeout"],
        app.conf.result_backend_transport_options["visibility_timeout"],
    )
    assert set(places) == {queue.VISIBILITY_TIMEOUT_S}
    assert app.conf.task_acks_late and app.conf.worker_prefetch_multiplier == 1
