"""A slide that is one file behind an https address."""

from pathlib import Path

from worker.download import download
from worker.outbound import Outbound, Resolve
from worker.transfer import Transfer


def fetch_file(outbound: Outbound, url: str, target: Path, transfer: Transfer, resolve: Resolve | None = None) -> None:
    """Fetch a file; no credentials are sent but what the address itself holds.

    Args:
        outbound: which addresses may be asked.
        url: of the file.
        target: new file.
        transfer: is told what comes, and may end it.
        resolve: as in `Outbound.pin`.

    Raises:
        BadRequest: the address may not be asked.
        SlideFetchFailed: it did not come, or not whole; what came may lie at `target`.
    """
    with download(outbound, url, {"Accept": "*/*"}, transfer, resolve) as body:
        transfer.keep(target, body.pieces)
