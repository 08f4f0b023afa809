"""Where a worker may deliver to, and with which keys: the operator's settings, read once. torch-free."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.deliveries_fhir import POST_S
from worker.deliveries_stow import STORE_S
from worker.deliveries_webhook import read_secret
from worker.errors import BadRequest
from worker.ledger_outbox import DICOMWEB, FHIR, PUSHED, WEBHOOK
from worker.outbound import CALL_S, Outbound, read_target

SPARE_S = 100.0
"""A sender holds a delivery for so much longer than its call may take at most: names are resolved, files fetched."""

GIVE_UP_S = 3 * 86400.0


@dataclass(frozen=True)
class Endpoint:
    """An address of the operator's own; since it is the operator who names it, it may lie in the own network."""

    url: str
    token: str | None = field(default=None, repr=False)
    outbound: Outbound = Outbound()


@dataclass(frozen=True)
class Destinations:
    """What a sender needs to know.

    Attributes:
        callbacks: which addresses clients may have called.
        key: what webhooks are signed with; None sends none.
        dicomweb, fhir: where results are pushed to; None is nowhere.
        push: of those, where the results of every job go.
        give_up_s: seconds after the first try from which there is no other.
    """

    callbacks: Outbound = Outbound()
    key: bytes | None = field(default=None, repr=False)
    dicomweb: Endpoint | None = None
    fhir: Endpoint | None = None
    push: tuple[str, ...] = ()
    give_up_s: float = GIVE_UP_S

    @property
    def times_s(self) -> dict[str, float]:
        """The targets that can be reached → seconds that a try of each may take at most."""
        there = {WEBHOOK: self.key, DICOMWEB: self.dicomweb, FHIR: self.fhir}
        calls = {WEBHOOK: CALL_S, DICOMWEB: STORE_S, FHIR: POST_S}
        return {target: calls[target] + SPARE_S for target, value in there.items() if value is not None}


def read_destinations(
    callback_hosts: str = "",
    callback_inside_hosts: str = "",
    webhook_secret: str = "",
    dicomweb_url: str = "",
    dicomweb_token: str = "",
    fhir_url: str = "",
    fhir_token: str = "",
    deliver: str = "",
    deliver_give_up_s: float = GIVE_UP_S,
) -> Destinations:
    """The settings of these names, as destinations; lists are comma-separated.

    Raises:
        BadRequest: one is not accepted; `field` names it, and no message repeats a secret.
    """
    dicomweb = read_endpoint(dicomweb_url, dicomweb_token, "dicomweb_url")
    fhir = read_endpoint(fhir_url, fhir_token, "fhir_url")
    push = split_names(deliver)
    for target in push:
        if target not in PUSHED:
            raise BadRequest(f"deliver names {target!r}; accepted are {', '.join(PUSHED)}", field="deliver")
        if {DICOMWEB: dicomweb, FHIR: fhir}[target] is None:
            raise BadRequest(f"deliver names {target}, and {target}_url is not set", field=f"{target}_url")
    if not math.isfinite(deliver_give_up_s) or deliver_give_up_s <= 0:
        raise BadRequest("deliver_give_up_s must be a number of seconds above 0", field="deliver_give_up_s")
    return Destinations(
        callbacks=read_callbacks(split_names(callback_hosts), split_names(callback_inside_hosts)),
        key=read_secret(webhook_secret) if webhook_secret else None,
        dicomweb=dicomweb,
        fhir=fhir,
        push=push,
        give_up_s=deliver_give_up_s,
    )


def read_callbacks(hosts: Sequence[str], inside: Sequence[str]) -> Outbound:
    """Which addresses clients may have called; names are compared in lower case."""
    return Outbound(tuple(name.lower() for name in hosts), tuple(name.lower() for name in inside))


def read_endpoint(url: str, token: str, name: str) -> Endpoint | None:
    """An address of the operator's own; None where it is empty.

    Raises:
        BadRequest: it is no http or https address.
    """
    if not url:
        return None
    return Endpoint(url, token or None, Outbound(inside=(read_target(url, name).place,)))


def split_names(text: str) -> tuple[str, ...]:
    """Names of a comma-separated list, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
