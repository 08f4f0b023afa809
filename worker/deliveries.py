"""What became of one try to deliver something, and when to try again.

deliveries            the outcome of a try, the pause before the next
 ├─ deliveries_webhook  a signed message that a job has ended
 ├─ deliveries_stow     DICOM objects to an archive, STOW-RS
 └─ deliveries_fhir     a bundle to a FHIR server
"""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from worker.outbound import Reply

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 3600.0
LONGEST_ASKED_S = 6 * 3600.0
"""A receiver may ask for a longer pause than we would make, but not for ever."""

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that say nothing about what was sent."""

MOST_SAID = 500


@dataclass(frozen=True)
class Outcome:
    """What became of a try.

    Attributes:
        state: `delivered`; `again` when it may succeed later; `failed` when it never will.
        said: the answer in words, at most 500 characters.
        status: the HTTP status, None where there was no answer.
        retry_after_s: seconds the receiver asked to be left alone; None when it did not.
    """

    state: str
    said: str
    status: int | None = None
    retry_after_s: float | None = None


def judge(reply: Reply, said: str = "") -> Outcome:
    """An HTTP answer by its status alone.

    Args:
        reply: the answer; redirects are failures, since they are not followed.
        said: what its body says, in words.
    """
    text = f"{reply.status}{f': {said}' if said else ''}"[:MOST_SAID]
    if 200 <= reply.status < 300:
        return Outcome("delivered", text, reply.status)
    if reply.status in PASSING:
        return Outcome("again", text, reply.status, retry_after_s(reply))
    if 300 <= reply.status < 400:
        return Outcome(
            "failed", f"{text} (redirects are not followed; give the final address)"[:MOST_SAID], reply.status
        )
    return Outcome("failed", text, reply.status)


def unanswered(error: OSError) -> Outcome:
    """Nobody answered: that may pass."""
    return Outcome("again", str(error)[:MOST_SAID])


def retry_after_s(reply: Reply, now: datetime | None = None) -> float | None:
    """Seconds of `Retry-After`, a number or a date (RFC 9110 §10.2.3); None where it is absent or senseless."""
    value = reply.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), LONGEST_ASKED_S)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return min(max((when - (now or datetime.now(UTC))).total_seconds(), 0.0), LONGEST_ASKED_S)


def pause_s(tries: int, outcome: Outcome, draw: random.Random | None = None) -> float:
    """Seconds before the next try: doubling, up to an hour, half of it drawn by chance; never less than was asked for.

    Args:
        tries: made so far, 1 or more.
        outcome: of the last.
        draw: source of chance.
    """
    full = min(FIRST_PAUSE_S * 2.0 ** min(tries - 1, 30), LONGEST_PAUSE_S)
    pause = full * (0.5 + 0.5 * (draw or random.Random()).random())
    return max(pause, outcome.retry_after_s or 0.0)
