"""A webhook: a small JSON message, signed as Standard Webhooks say, so that its receiver can tell it from a forgery.

Source: https://www.standardwebhooks.com, specification 1.0.0.
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from typing import Any

from worker.deliveries import Outcome, judge, unanswered
from worker.errors import BadRequest
from worker.outbound import CALL_S, Call, Outbound, Resolve, Stop, call

PREFIX = "whsec_"
KEY_BYTES = (24, 64)


def read_secret(secret: str) -> bytes:
    """The key within `whsec_` and base64.

    Raises:
        BadRequest: it is none of 24 to 64 bytes; the message does not repeat it.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not KEY_BYTES[0] <= len(key) <= KEY_BYTES[1]:
        raise BadRequest(f"webhook_secret must be {PREFIX} and 24 to 64 random bytes in base64", field="webhook_secret")
    return key


def signature(key: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def send_webhook(
    outbound: Outbound,
    url: str,
    key: bytes,
    event_id: str,
    message: dict[str, Any],
    limit_s: float = CALL_S,
    resolve: Resolve | None = None,
    stop: Stop | None = None,
) -> Outcome:
    """Send a message once.

    Args:
        outbound: which addresses may be called; asked again at every try, since an operator may have changed it.
        url: where to.
        key: of `read_secret`.
        event_id: the same at every try of one event, by which a receiver knows one that comes twice.
        message: without patient data; written the same way at every try.
        limit_s: seconds for the call.
        resolve: as in `Outbound.pin`.
        stop: as in `call`.
    """
    body = json.dumps(message, sort_keys=True, separators=(",", ":")).encode()
    timestamp = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "SlideReason",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(key, event_id, timestamp, body),
    }
    try:
        reply = call(outbound, outbound.check(url), Call(headers, body), limit_s, resolve, stop)
    except BadRequest as error:
        return Outcome("failed", error.message)
    except OSError as error:
        return unanswered(error)
    return judge(reply)
