"""Links to a job's results for whom no proxy speaks: an `<img>`, an EventSource, a Zarr reader, a colleague."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from service.rooms import In
from service.schemas import Answer, Request

router = APIRouter(tags=["results"])

JobId = Annotated[str, Path(max_length=100)]
LEAST_S, MOST_S = 10, 30 * 86400


class LinkRequest(Request):
    """For how long a link is to be good."""

    expires_s: int = Field(
        3600, ge=LEAST_S, le=MOST_S, description="Seconds until the link opens nothing any more", examples=[3600]
    )


class SharedLink(Answer):
    """A link; its token is shown this once and kept nowhere."""

    url: str = Field(description="Address below which the results lie, e.g. `{url}/overlay/zarr.json`")
    expires: datetime


class Revoked(Answer):
    """How many links were open, and are no more."""

    revoked: int


@router.post("/v1/jobs/{job_id}/links", status_code=201, summary="Share the results", response_model=SharedLink)
def make_link(rooms: In, job_id: JobId, wanted: LinkRequest) -> Response:
    """An address that shows this job's results, read-only, to whoever knows it, until it expires or is revoked."""
    token, expires = rooms.ledger.make_link(job_id, rooms.tenant, wanted.expires_s)
    link = SharedLink(url=f"/v1/shared/{token}", expires=expires)
    headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return JSONResponse(link.model_dump(mode="json"), 201, headers)


@router.delete("/v1/jobs/{job_id}/links", summary="Revoke all links of the job", response_model=Revoked)
def revoke_links(rooms: In, job_id: JobId) -> Revoked:
    """From now on none of them opens anything."""
    return Revoked(revoked=rooms.ledger.revoke_links(job_id, rooms.tenant))
