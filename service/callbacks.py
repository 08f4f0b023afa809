"""Whether a job may name an address that is told of its end."""

import ipaddress

from service.settings import Settings
from worker.errors import BadRequest


def check_callback(settings: Settings, url: str | None) -> None:
    """Judge a `callback_url` by how it is written; its host is looked up by the worker that calls it.

    Raises:
        BadRequest: webhooks are not set up, or this address may not be called; `field` is `callback_url`.
    """
    if url is None:
        return
    if settings.webhook_secret is None or not (settings.callback_hosts or settings.callback_inside_hosts):
        raise BadRequest(
            "callback_url is not accepted, as this service sends no webhooks: its operator must set "
            "SLIDEREASON_WEBHOOK_SECRET, and the hosts that may be called in SLIDEREASON_CALLBACK_HOSTS",
            field="callback_url",
        )
    outbound = settings.callbacks
    target = outbound.check(url)
    try:
        ipaddress.ip_address(target.host)
    except ValueError:
        return
    outbound.pin(target, lambda host, _port: [host])
