"""The models that jobs may name."""

from fastapi import APIRouter

from service.rooms import In, Rooms
from service.schemas import Model, ModelList

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="Installed models, what they were taught, and their figures")
def list_models(rooms: In) -> ModelList:
    """The cards of the workers heard from lately; workers with the same model are one entry."""
    return ModelList(models=models(rooms), default=rooms.settings.model)


def models(rooms: Rooms) -> list[Model]:
    """One entry per model and revision."""
    found: dict[tuple[str, str], list] = {}
    for worker in rooms.ledger.workers(rooms.settings.worker_heard_s):
        found.setdefault((worker.card["name"], worker.card["revision"]), []).append(worker)
    return [_model(rooms, workers) for _, workers in sorted(found.items())]


def names(rooms: Rooms) -> set[str]:
    """Every name a job may use now; the default is one even while its worker starts."""
    return {rooms.settings.model} | {name for model in models(rooms) for name in model.names}


def _model(rooms: Rooms, workers: list) -> Model:
    card = workers[0].card
    known = sorted({card["name"], *(name for worker in workers for name in worker.models)})
    return Model(
        name=card["name"],
        names=known,
        default=rooms.settings.model in known,
        revision=card["revision"],
        tile_size_px=card["tile_size_px"],
        default_mpp=card["default_mpp"],
        targets=list(card.get("targets", ())),
        licence=card.get("licence", ""),
        parameters=card.get("parameters", 0),
        figures=card.get("figures", {}),
        exemplars=card.get("exemplars", False),
        workers=len(workers),
    )
