"""The client retries what may pass, gives up on what cannot, and never tells the key."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import cv2
import numpy as np
import pytest

from model.chains.endpoint import (
    MAX_WAIT_S,
    Endpoint,
    EndpointRefused,
    EndpointSettings,
    EndpointUnavailable,
    RequestRefused,
    key_from,
    picture_part,
)
from model.chains.prompt import answer_in
from tests.model.chain_fakes import FakeEndpoint, completion, one_after_another, slowly

KEY = "sk-very-secret-0123456789"
ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def endpoint(url: str, waits: list[float] | None = None, **settings) -> Endpoint:
    """A client that notes its waits instead of waiting."""
    return Endpoint(EndpointSettings(url, "fake", **settings), sleep=(waits if waits is not None else []).append)


def test_a_good_answer_and_what_was_asked():
    with FakeEndpoint(one_after_another(completion("hi", "fake-2", 11))) as server:
        found = endpoint(server.url, temperature=0.5, max_tokens=99).complete(ASK, seed=3)
    assert (found.text, found.model, found.attempts, found.tokens) == ("hi", "fake-2", 1, 11)
    assert server.requests == [{
        "model": "fake", "messages": ASK, "temperature": 0.5, "max_tokens": 99, "stream": False, "seed": 3,
    }]  # fmt: skip
    assert server.paths == ["/v1/chat/completions"]
    assert "Authorization" not in server.headers[0]


def test_retry_after_is_honoured_in_seconds_and_as_a_date():
    for value, least, most in (("7", 6.9, 7.0), (formatdate(time.time() + 20, usegmt=True), 18, 20.1)):
        waits: list[float] = []
        with FakeEndpoint(one_after_another((429, {"Retry-After": value}, b""), completion("ok"))) as server:
            assert endpoint(server.url, waits).complete(ASK).attempts == 2
        assert len(waits) == 1 and least <= waits[0] <= most


def test_a_retry_after_of_hours_is_cut():
    waits: list[float] = []
    with FakeEndpoint(one_after_another((503, {"Retry-After": "86400"}, b""), completion("ok"))) as server:
        endpoint(server.url, waits).complete(ASK)
    assert MAX_WAIT_S - 1 < waits[0] <= MAX_WAIT_S


def test_server_errors_back_off_exponentially_and_then_end():
    waits: list[float] = []
    with FakeEndpoint(one_after_another((500, {}, b'{"error": {"message": "out of memory"}}'))) as server:
        with pytest.raises(EndpointUnavailable, match="500 .*out of memory, after 4 attempts"):
            endpoint(server.url, waits, attempts=4, backoff_s=10).complete(ASK)
    assert len(server.requests) == 4
    assert 9.9 < waits[0] < 12.6 < 19.9 < waits[1] < 25.1 < 39.9 < waits[2] < 50.1


def test_a_timeout_is_retried():
    with FakeEndpoint(slowly(completion("late"), 1.0)) as server:
        with pytest.raises(EndpointUnavailable, match="no answer within 0.2 s, after 2 attempts"):
            endpoint(server.url, attempts=2, timeout_s=0.2).complete(ASK)
        assert len(server.requests) == 2


def test_nobody_there():
    with pytest.raises(EndpointUnavailable, match="refused"):
        endpoint("http://127.0.0.1:9", attempts=2).complete(ASK)


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": {}}]}', b'{"choices": [{"message": null}]}',
     b'{"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}'],
)  # fmt: skip
def test_an_answer_that_is_none_is_retried(body):
    with FakeEndpoint(one_after_another((200, {}, body), completion("ok"))) as server:
        assert endpoint(server.url).complete(ASK).attempts == 2
    with FakeEndpoint(one_after_another((200, {}, body))) as server:
        with pytest.raises(EndpointUnavailable, match="no chat completion|empty answer"):
            endpoint(server.url, attempts=1).complete(ASK)


def test_content_in_parts_is_joined():
    body = {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]}
    with FakeEndpoint(one_after_another((200, {}, json.dumps(body).encode()))) as server:
        assert endpoint(server.url).complete(ASK).text == "ab"


@pytest.mark.parametrize(("status", "kind"), [(401, EndpointRefused), (404, EndpointRefused), (400, RequestRefused)])
def test_what_cannot_pass_is_not_tried_again(status, kind):
    with FakeEndpoint(one_after_another((status, {}, b'{"error": {"message": "no such thing"}}'))) as server:
        with pytest.raises(kind, match=f"{status} .*no such thing"):
            endpoint(server.url).complete(ASK)
    assert len(server.requests) == 1


def test_the_key_is_sent_and_never_told():
    body = json.dumps({"error": {"message": f"Incorrect key {KEY}"}}).encode()
    with FakeEndpoint(one_after_another((401, {}, body))) as server:
        client = endpoint(f"{server.url}/v1?api-version=1", key=KEY)
        with pytest.raises(EndpointRefused) as refused:
            client.complete(ASK)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.paths == ["/v1/chat/completions?api-version=1"]
    assert KEY not in str(refused.value) and "[key]" in str(refused.value)
    assert KEY not in repr(client.settings) and "api-version" not in client.settings.told


def test_a_redirect_does_not_take_the_key_elsewhere():
    with FakeEndpoint(one_after_another(completion("stolen"))) as other:
        moved = (302, {"Location": f"{other.url}/v1/chat/completions"}, b"")
        with FakeEndpoint(one_after_another(moved)) as server, pytest.raises(EndpointRefused, match="302"):
            endpoint(server.url, key=KEY).complete(ASK)
    assert other.requests == []


def test_no_more_requests_are_under_way_than_allowed():
    with FakeEndpoint(slowly(completion("ok"), 0.1)) as server:
        client = endpoint(server.url, concurrency=2)
        with ThreadPoolExecutor(6) as pool:
            assert [found.text for found in pool.map(lambda _: client.complete(ASK), range(6))] == ["ok"] * 6
    assert server.busiest == 2


@pytest.mark.parametrize(
    ("url", "address"),
    [("http://h:1", "http://h:1/v1/chat/completions"), ("http://h/v1/", "http://h/v1/chat/completions"),
     ("https://h/api/v3", "https://h/api/v3/chat/completions"),
     ("https://h/x/chat/completions", "https://h/x/chat/completions")],
)  # fmt: skip
def test_addresses(url, address):
    assert EndpointSettings(url, "m").address == address


@pytest.mark.parametrize("url", ["ftp://h", "h:80", "", "http://", "http://me:pw@h/v1"])
def test_addresses_that_are_not_accepted(url):
    with pytest.raises(ValueError, match="endpoint: .*"):
        EndpointSettings(url, "m")


def test_the_key_comes_from_the_variable(monkeypatch):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert key_from("MY_KEY") == KEY and key_from(None) == ""
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ValueError, match="--api-key-env MY_KEY: the variable is not set"):
        key_from("MY_KEY")


def test_a_picture_travels_unharmed():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    url = picture_part(image)["image_url"]["url"]
    png = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    read = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(cv2.cvtColor(read, cv2.COLOR_BGR2RGB), image)


@pytest.mark.parametrize(
    "reply",
    ["<answer><think> a </think> b</answer>", "<think>mine</think> sure: <answer>\n<think>a</think>\nb</answer> bye",
     "```\n<think>  a\n</think>b\n```", "<think>mine</think><think> a </think> b", "<answer><think>a</think>b"],
)  # fmt: skip
def test_the_chain_is_found_in_what_a_model_says(reply):
    assert answer_in(reply) == "<think> a </think> b"
