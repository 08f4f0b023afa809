"""Deliveries: results pushed to an archive or a FHIR server, and what became of them and of webhooks."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from service.errors import Problem
from service.rooms import In, Rooms
from service.schemas import Answer, ProblemBody, Request
from worker.ledger_deliveries import DeliveryRow
from worker.ledger_outbox import ANNOTATIONS, DICOMWEB, PUSHED

router = APIRouter(tags=["results"])

JobId = Annotated[str, Path(max_length=100)]
MAY_FAIL = {409: {"model": ProblemBody, "description": "The job has no results, or the operator named no such place"}}


class DeliveryRequest(Request):
    """Where to push a job's results."""

    to: Literal["dicomweb", "fhir"] = Field(
        description="`dicomweb`: the DICOM Segmentation by STOW-RS; `fhir`: the bundle. The operator says where",
        examples=["dicomweb"],
    )
    annotations: bool = Field(False, description="With `dicomweb`: the DICOM microscopy annotations as well")


class Delivery(Answer):
    """A delivery as it stands. A webhook's address is not shown."""

    id: str = Field(description="The same at every try; a webhook's `webhook-id`")
    to: Literal["webhook", "dicomweb", "fhir"]
    state: Literal["waiting", "sending", "delivered", "failed"]
    tries: int
    said: str = Field(description="The last answer in words; empty before the first")
    status: int | None = Field(description="Its HTTP status; null where nobody answered")
    created: datetime
    next_try: datetime | None
    gives_up: datetime | None = Field(description="From then on it is not tried again; null before the first try")


class DeliveryList(Answer):
    """The job's deliveries, oldest first."""

    deliveries: list[Delivery]


@router.post(
    "/v1/jobs/{job_id}/deliveries", status_code=202, summary="Push the results to a server of the operator's",
    response_model=Delivery, responses=MAY_FAIL,
)  # fmt: skip
def ask_delivery(rooms: In, job_id: JobId, wanted: DeliveryRequest) -> Response:
    """A worker makes the files and sends them, and again while the server is away. One on its way is not sent twice."""
    job = rooms.finished(job_id)
    _require_place(rooms, wanted.to)
    exports = PUSHED[wanted.to] + ((ANNOTATIONS,) if wanted.annotations and wanted.to == DICOMWEB else ())
    for name in exports:
        if rooms.ledger.ask_export(job_id, name, again=True).state == "waiting":
            rooms.send_ticket(job.spec.model)
    row = rooms.ledger.ask_delivery(job_id, rooms.tenant, wanted.to, exports)
    headers = {"Location": f"/v1/jobs/{job_id}/deliveries", "Cache-Control": "no-store"}
    return JSONResponse(_shown(row).model_dump(mode="json"), 202, headers)


@router.get("/v1/jobs/{job_id}/deliveries", summary="What became of deliveries", response_model=DeliveryList)
def list_deliveries(rooms: In, job_id: JobId) -> DeliveryList:
    """Webhooks and pushed results: how often each was tried, what was answered, and when it is tried again."""
    rooms.ledger.job(job_id, rooms.tenant)
    return DeliveryList(deliveries=[_shown(row) for row in rooms.ledger.deliveries(job_id)])


def _require_place(rooms: Rooms, to: str) -> None:
    name = f"{to}_url"
    if not getattr(rooms.settings, name):
        detail = f"results cannot be pushed to {to}: the operator must set SLIDEREASON_{name.upper()}"
        raise Problem(409, "delivery-not-set-up", detail, field="to")


def _shown(row: DeliveryRow) -> Delivery:
    known = asdict(row)
    return Delivery(id=known.pop("delivery_id"), to=known.pop("target"), **known)
