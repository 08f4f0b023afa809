"""Every error of SlideReason, drawn as a tree.

    SlideReasonError
     ├─ SlideNotFound (FileNotFoundError)     the reference names nothing that exists under the roots
     ├─ SlideForbidden (PermissionError)      the reference leads outside the roots
     ├─ SlideUnreadable (ValueError)          there is a file, but it is not a slide, or it is broken
     ├─ SlideFetching (RuntimeError)          the slide is on its way from elsewhere; ask again later
     ├─ SlideFetchFailed (OSError)            the slide could not be fetched from elsewhere; says why
     ├─ MppUnknown (ValueError)               the slide does not say its µm/px; give mpp_override
     ├─ BadRequest (ValueError)               a field's value is not accepted; says what would be
     │   └─ TooLarge                          a limit was passed
     ├─ JobNotFound (LookupError)             no such job
     ├─ JobExpired (LookupError)              its results were removed when their time was over
     ├─ JobConflict (ValueError)              same idempotency key, other body; or the job's state forbids it
     ├─ QueueFull (RuntimeError)              too many open jobs; try later
     ├─ LeaseLost (RuntimeError)              another worker owns the block now
     ├─ JobDismissed (InterruptedError)       the job was cancelled while it ran
     ├─ CoverageTooLow (RuntimeError)         fewer tiles could be looked at than the job's min_coverage
     ├─ StorageAway (OSError)                 artifacts cannot be read or written now; the work waits
     ├─ NewerArtifacts (RuntimeError)         a newer version wrote what this one cannot read; the work waits for that
     └─ TileFailed (RuntimeError)             a tile could not be read or segmented
"""

from collections.abc import Iterator
from contextlib import contextmanager


class SlideReasonError(Exception):
    """Base of all. `code` is stable, `field` names the input at fault, `subject` the slide, tile, block or job."""

    code = "internal"

    def __init__(self, message: str, *, field: str | None = None, subject: str | None = None):
        super().__init__(message)
        self.message = message
        self.field = field
        self.subject = subject

    def __str__(self) -> str:
        return self.message


class SlideNotFound(SlideReasonError, FileNotFoundError):
    """The reference names nothing that exists under the configured roots."""

    code = "slide-not-found"


class SlideForbidden(SlideReasonError, PermissionError):
    """The reference leads outside the configured roots."""

    code = "slide-forbidden"


class SlideUnreadable(SlideReasonError, ValueError):
    """There is a file, but no reader can open it as a slide."""

    code = "slide-unreadable"


class SlideFetching(SlideReasonError, RuntimeError):
    """The slide is on its way from elsewhere; ask again after `retry_after_s`. `subject` is its id."""

    code = "slide-fetching"

    def __init__(self, message: str, *, retry_after_s: int = 2, field: str | None = None, subject: str | None = None):
        super().__init__(message, field=field, subject=subject)
        self.retry_after_s = retry_after_s


class SlideFetchFailed(SlideReasonError, OSError):
    """The slide could not be fetched from elsewhere; the message says why, and repeats no address."""

    code = "slide-fetch-failed"


class MppUnknown(SlideReasonError, ValueError):
    """The slide does not state its resolution; `mpp_override` must."""

    code = "mpp-unknown"


class BadRequest(SlideReasonError, ValueError):
    """A field's value is not accepted; the message says what would be."""

    code = "bad-request"


class TooLarge(BadRequest):
    """A stated limit was passed."""

    code = "too-large"


class JobNotFound(SlideReasonError, LookupError):
    """No job has this id."""

    code = "job-not-found"


class JobExpired(SlideReasonError, LookupError):
    """The job was there; its results were removed when the time they are kept was over."""

    code = "job-expired"


class JobConflict(SlideReasonError, ValueError):
    """The same idempotency key came with another body, or the job's state forbids the call."""

    code = "job-conflict"


class QueueFull(SlideReasonError, RuntimeError):
    """Too many open jobs; try again after `retry_after_s`."""

    code = "queue-full"

    def __init__(self, message: str, *, retry_after_s: int = 30, field: str | None = None, subject: str | None = None):
        super().__init__(message, field=field, subject=subject)
        self.retry_after_s = retry_after_s


class LeaseLost(SlideReasonError, RuntimeError):
    """The block's lease expired and another worker holds a newer token."""

    code = "lease-lost"


class JobDismissed(SlideReasonError, InterruptedError):
    """The job was dismissed while work on it went on."""

    code = "job-dismissed"


class CoverageTooLow(SlideReasonError, RuntimeError):
    """Fewer tiles could be looked at than the job's `min_coverage`."""

    code = "coverage-too-low"


class StorageAway(SlideReasonError, OSError):
    """Artifacts cannot be read or written now; nothing the data could help."""

    code = "storage-away"


class NewerArtifacts(SlideReasonError, RuntimeError):
    """A newer version of SlideReason wrote what this one cannot read: the work is left to a worker of that version."""

    code = "newer-artifacts"


class TileFailed(SlideReasonError, RuntimeError):
    """A tile could not be read or segmented; the job goes on without it."""

    code = "tile-failed"


@contextmanager
def fields_of(owner: str) -> Iterator[None]:
    """Errors from inside name their field as the owner's: `slide` becomes `exemplar.slide`."""
    try:
        yield
    except SlideReasonError as error:
        error.field = f"{owner}.{error.field or 'slide'}"
        raise
