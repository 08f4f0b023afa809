"""A client of any OpenAI-compatible `/v1/chat/completions`: retries, deadlines, and a key that is never told.

The key is read from an environment variable, sent in the `Authorization` header, and nowhere else: not in errors,
which are cleaned of it, not in what is stored of an endpoint, which is its address without query, and not to another
host, as redirects are not followed.
"""

import base64
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import cv2
import numpy as np

MAX_ANSWER_BYTES = 4 * 2**20
MAX_WAIT_S = 300.0
"""Longest wait between two attempts, whatever Retry-After says."""
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_OURS = frozenset({400, 413, 422})
"""Statuses that blame this one request, not the configuration."""


class EndpointError(RuntimeError):
    """No usable answer; the message never holds the key.

    EndpointError
     ├── EndpointRefused      the configuration is wrong: address, key, model; trying again is pointless
     ├── RequestRefused       this one request is not accepted: too long, filtered
     └── EndpointUnavailable  down, overloaded or answering nonsense, after every attempt
    """


class EndpointRefused(EndpointError, ValueError):
    """Address, key or model are not accepted (301 to 308, 401, 403, 404 and other 4xx)."""


class RequestRefused(EndpointError):
    """This request is not accepted (400, 413, 422), another one may be."""


class EndpointUnavailable(EndpointError, ConnectionError):
    """No answer, an error of the server or an answer that is none, after every attempt."""


@dataclass(frozen=True)
class EndpointSettings:
    """How to reach a model.

    Attributes:
        url: base address (`http://host:8000`, `…/v1`) or the whole address of `chat/completions`.
        model: the name the endpoint knows it by.
        key: bearer token; "" sends none. Never shown.
        timeout_s: for one attempt as a whole.
        attempts: tries of one request, the first included.
        concurrency: requests under way at once.
        temperature: of sampling.
        max_tokens: longest answer; room for a model that thinks before it answers.
        backoff_s: wait before the second attempt, doubled before each further one, plus up to a quarter by chance.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout_s: float = 120.0
    attempts: int = 5
    concurrency: int = 4
    temperature: float = 0.3
    max_tokens: int = 4096
    backoff_s: float = 1.0

    def __post_init__(self):
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("endpoint: an address such as http://127.0.0.1:8000/v1 is accepted")
        if parts.username or parts.password:
            raise ValueError("endpoint: no user or password in the address; name the key's variable with --api-key-env")
        if min(self.timeout_s, self.attempts, self.concurrency, self.max_tokens) <= 0 or self.temperature < 0:
            raise ValueError("endpoint: timeout, attempts, concurrency and tokens above 0, temperature from 0 accepted")

    @property
    def address(self) -> str:
        """Where requests go."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            versioned = path.rsplit("/", 1)[-1][:1] == "v" and path.rsplit("/", 1)[-1][1:].isdigit()
            path = f"{path}/chat/completions" if versioned else f"{path}/v1/chat/completions"
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    @property
    def told(self) -> str:
        """The address as it is stored: without query, where some keep keys."""
        parts = urlsplit(self.address)
        return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


@dataclass(frozen=True)
class Completion:
    """What came back.

    Attributes:
        text: of the first choice.
        model: the name the endpoint answered with.
        attempts: how many tries it took.
        tokens: as counted by the endpoint, 0 when it does not say.
    """

    text: str
    model: str
    attempts: int
    tokens: int


def key_from(variable: str | None) -> str:
    """The key in an environment variable; "" without a variable.

    Raises:
        ValueError: it is not set or empty, or holds what no header may.
    """
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"--api-key-env {variable}: the variable is not set")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"--api-key-env {variable}: the key must be printable ASCII without spaces")
    return key


def picture_part(image: np.ndarray) -> dict[str, Any]:
    """An (H, W, 3) uint8 RGB picture as a part of a message: a PNG in a data URL."""
    _, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    url = f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode('ascii')}"
    return {"type": "image_url", "image_url": {"url": url}}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects are errors: the key is meant for the host that was named."""

    def redirect_request(self, *args, **kwargs) -> None:
        return None


class _Retry(Exception):
    """One attempt failed in a way that may pass; `wait_s` is what the server asked for, None when it did not."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


class Endpoint:
    """Asks one endpoint; may be shared by threads, which wait together when it asks them to.

    Args:
        settings: how to reach it.
        sleep: waits so many seconds; replaced in tests.
    """

    def __init__(self, settings: EndpointSettings, sleep: Callable[[float], None] = time.sleep):
        self.settings = settings
        self._sleep = sleep
        self._slots = threading.BoundedSemaphore(settings.concurrency)
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._open_at = 0.0

    def complete(self, messages: list[dict[str, Any]], seed: int | None = None) -> Completion:
        """Ask for one answer.

        Args:
            messages: as the API takes them.
            seed: of sampling, where the endpoint heeds it.

        Raises:
            EndpointRefused, RequestRefused, EndpointUnavailable.
        """
        asked = {
            "model": self.settings.model, "messages": messages, "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens, "stream": False,
        }  # fmt: skip
        body = json.dumps(asked if seed is None else asked | {"seed": seed}).encode("utf-8")
        reason = ""
        with self._slots:
            for attempt in range(1, self.settings.attempts + 1):
                self._sleep_until_open()
                try:
                    return self._read(self._post(body), attempt)
                except _Retry as failed:
                    reason = str(failed)
                    if attempt < self.settings.attempts:
                        self._close_for(failed.wait_s, attempt)
        raise EndpointUnavailable(f"{self.settings.told}: {reason}, after {self.settings.attempts} attempts")

    def _post(self, body: bytes) -> bytes:
        """One attempt: the body of a 200."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "slidereason"}
        if self.settings.key:
            headers["Authorization"] = f"Bearer {self.settings.key}"
        request = urllib.request.Request(self.settings.address, body, headers, method="POST")
        deadline = time.monotonic() + self.settings.timeout_s
        try:
            with self._opener.open(request, timeout=self.settings.timeout_s) as response:
                return _read_until(response, deadline)
        except urllib.error.HTTPError as error:
            raise self._judged(error) from None
        except TimeoutError:
            raise _Retry(f"no answer within {self.settings.timeout_s:g} s") from None
        except (OSError, HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            told = f"no answer within {self.settings.timeout_s:g} s" if isinstance(reason, TimeoutError) else reason
            raise _Retry(self._clean(str(told) or type(error).__name__)) from None

    def _judged(self, error: urllib.error.HTTPError) -> Exception:
        """Whether a status is worth another attempt."""
        with error:
            try:
                said = error.read(65536).decode("utf-8", "replace")
            except (OSError, HTTPException):
                said = ""
        message = f"{error.code} {error.reason}: {self._clean(_said(said))}".rstrip(": ")
        if error.code in _RETRIED or error.code >= 500:
            return _Retry(message, _retry_after(error.headers.get("Retry-After")))
        if error.code in _OURS:
            return RequestRefused(f"{self.settings.told}: {message}")
        return EndpointRefused(f"{self.settings.told}: {message}")

    def _read(self, body: bytes, attempt: int) -> Completion:
        """The answer in a body."""
        try:
            told = json.loads(body)
            choice = told["choices"][0]
            content = choice["message"]["content"]
            if isinstance(content, list):
                content = "".join(part.get("text") or "" for part in content)
            if not isinstance(content, str):
                raise TypeError(f"content is {content!r:.40}")
            tokens = int((told.get("usage") or {}).get("total_tokens") or 0)
            model = str(told.get("model") or self.settings.model)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise _Retry(f"the answer is no chat completion ({self._clean(repr(error))})") from None
        if not content.strip():
            raise _Retry(f"an empty answer (finish_reason {choice.get('finish_reason')}); more --max-tokens may help")
        return Completion(content, model, attempt, tokens)

    def _close_for(self, asked_s: float | None, attempt: int) -> None:
        """Hold every thread back: as long as the server asked, or by the exponential backoff."""
        backoff = self.settings.backoff_s * 2 ** (attempt - 1) * (1 + random.random() / 4)
        wait = min(backoff if asked_s is None else asked_s, MAX_WAIT_S)
        self._open_at = max(self._open_at, time.monotonic() + wait)

    def _sleep_until_open(self) -> None:
        wait = self._open_at - time.monotonic()
        if wait > 0:
            self._sleep(wait)

    def _clean(self, text: str) -> str:
        """A server's words on one line, without the key, should it repeat it."""
        text = text.replace(self.settings.key, "[key]") if self.settings.key else text  # before it is cut
        return " ".join(text.split())[:300]


def _read_until(response, deadline: float) -> bytes:
    """The whole body, unless it trickles past the deadline or is absurdly long."""
    parts, size = [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise _Retry(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


def _said(body: str) -> str:
    """The message in an error's body, or the body."""
    try:
        told = json.loads(body)
        told = told.get("error", told)
        return str(told.get("message", told)) if isinstance(told, dict) else str(told)
    except (ValueError, AttributeError):
        return body


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None without one that can be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
