"""Whose request it is, as the authenticating proxy in front says in a header of its own.

The gateway believes that header, so nothing but the proxy may reach it, and the proxy must remove what clients send
under that name. Jobs and their results belong to a tenant; slides are shared between tenants for now.
"""

import re

from starlette.datastructures import Headers

from service.errors import Problem
from worker.ledger import EVERYONE

TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
ACCEPTED = "1 to 64 letters, digits, dots, hyphens or underscores"


def tenant_of(headers: Headers, name: str | None) -> str:
    """The tenant that a request belongs to.

    Args:
        headers: of the request.
        name: of the header that says so; None: everybody is one tenant.

    Raises:
        Problem: 401 without the header, 403 when it is there twice or says what is no tenant.
    """
    if name is None:
        return EVERYONE
    said = headers.getlist(name)
    if not said:
        challenge = {"WWW-Authenticate": 'Proxy realm="slidereason"'}
        raise Problem(401, "tenant-missing", f"the proxy in front must say who asks, in {name}", headers=challenge)
    if len(said) > 1:
        raise Problem(403, "tenant-ambiguous", f"{name} came {len(said)} times; the proxy must send it once")
    if not TENANT.fullmatch(said[0]):
        raise Problem(403, "tenant-malformed", f"{name} names no tenant; accepted are {ACCEPTED}")
    return said[0]
