"""A slide in an S3 bucket: an object, or everything below a prefix. Keys and endpoint are those of the environment."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import obstore
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from worker.artifacts_s3 import CLIENT, PAGE, RETRY, read_endpoint
from worker.errors import BadRequest, SlideFetchFailed
from worker.transfer import Transfer

PIECE_BYTES = 8 << 20
"""Asked for at once: the client's time limit is for a whole answer, and one that is lost costs no more than this."""

STEP_BYTES = 256 << 10
"""Counted at once, so that a slow line shows as one that goes on."""

PARALLEL = 8
"""Objects of a folder at once."""

MOST_OBJECTS = 200_000
NOTHING = "the store has no such object or bucket"
SAID = re.compile(r"status code: \d{3}[A-Za-z ]*|[Cc]redentials?")
"""Of what the client says only this is passed on."""


def fetch_object(bucket: str, key: str, target: Path, transfer: Transfer) -> None:
    """Fetch an object into a new file.

    Args:
        bucket, key: where it lies.
        target: new file.
        transfer: is told what comes, and may end it.

    Raises:
        SlideFetchFailed: it did not come, or changed meanwhile; what came may lie at `target`.
    """
    with _words():
        store = _open(bucket)
        found = obstore.head(store, key)
    transfer.expect(found["size"])
    transfer.keep(target, _pieces(store, found, transfer))


def fetch_folder(bucket: str, prefix: str, folder: Path, transfer: Transfer) -> None:
    """Fetch every object below a prefix, under the same names.

    Args:
        bucket, prefix: where they lie; the prefix ends with `/`.
        folder: exists and is empty.
        transfer: is told what comes, and may end it.

    Raises:
        SlideFetchFailed: they did not all come, or have names that no file can have; what came may lie in `folder`.
    """
    with _words():
        store = _open(bucket)
        objects = _without_markers(list(_listed(store, prefix, transfer)))
    if not objects:
        raise SlideFetchFailed("the store has nothing below this prefix", field="slide")
    transfer.expect(sum(found["size"] for found in objects))

    def fetch(found: dict[str, Any]) -> None:
        transfer.check()  # after the first error of another the rest ends at once
        target = folder.joinpath(*_parts(found["path"], prefix))
        target.parent.mkdir(parents=True, exist_ok=True)
        transfer.keep(target, _pieces(store, found, transfer))

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="fetch-s3") as pool:
        try:
            list(pool.map(fetch, objects))
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            detail = "the store holds an object and others below its name, which no folder can"
            raise SlideFetchFailed(detail, field="slide") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _open(bucket: str) -> S3Store:
    try:
        _, allow_http = read_endpoint()
    except BadRequest as error:
        raise SlideFetchFailed("the operator names an endpoint of S3 that may not be used", field="slide") from error
    return S3Store(bucket, retry_config=RETRY, client_options={**CLIENT, "allow_http": allow_http})


def _listed(store: S3Store, prefix: str, transfer: Transfer) -> Iterator[dict[str, Any]]:
    """What lies below a prefix."""
    count = 0
    for page in obstore.list(store, prefix.rstrip("/"), chunk_size=PAGE):
        transfer.check()
        for found in page:
            if not found["path"].startswith(prefix):
                continue
            count += 1
            if count > MOST_OBJECTS:
                detail = f"more than {MOST_OBJECTS} objects lie below this prefix, the most that are fetched"
                raise SlideFetchFailed(detail, field="slide")
            yield found


def _without_markers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Consoles make empty objects that stand for folders; the client names them without the `/` at their end."""
    folders = {str(folder) for found in objects for folder in PurePosixPath(found["path"]).parents}
    return [found for found in objects if found["size"] or found["path"] not in folders]


def _parts(key: str, prefix: str) -> list[str]:
    """Names of folders and file below a prefix."""
    parts = key.removeprefix(prefix).split("/")
    if any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > 255 for part in parts):
        raise SlideFetchFailed("the store holds a name that no file can have", field="slide")
    return parts


def _pieces(store: S3Store, found: dict[str, Any], transfer: Transfer) -> Iterator[bytes]:
    """An object's bytes; all of the version that was found first."""
    for start in range(0, found["size"], PIECE_BYTES):
        end = min(start + PIECE_BYTES, found["size"])
        with _words():
            options: dict[str, Any] = {"range": (start, end)} | ({"if_match": found["e_tag"]} if found["e_tag"] else {})
            answer = iter(obstore.get(store, found["path"], options=options).stream(min_chunk_size=STEP_BYTES))
        left = end - start
        while True:
            with _words():
                step = next(answer, None)
            if step is None:
                break
            left -= len(step)
            transfer.took(len(step))
            yield bytes(step)
        if left:
            raise SlideFetchFailed("the store broke off in the middle", field="slide")


@contextmanager
def _words() -> Iterator[None]:
    """What the client raises, in words that hold neither key nor address."""
    try:
        yield
    except FileNotFoundError:
        raise SlideFetchFailed(NOTHING, field="slide") from None
    except (PermissionDeniedError, UnauthenticatedError):
        raise SlideFetchFailed("the store refuses the operator's key for this place", field="slide") from None
    except PreconditionError:
        raise SlideFetchFailed("the object was changed while it was fetched", field="slide") from None
    except (InvalidPathError, ValueError):
        raise SlideFetchFailed("the store holds a name that no file can have", field="slide") from None
    except BaseError as error:
        if "NoSuchBucket" in str(error):
            raise SlideFetchFailed(NOTHING, field="slide") from None
        said = SAID.search(str(error))
        detail = f"the store does not answer as it should: {said[0] if said else type(error).__name__}"
        raise SlideFetchFailed(detail, field="slide") from None
