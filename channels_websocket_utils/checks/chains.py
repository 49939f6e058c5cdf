"""No checks: list the middleware and routes in front of each consumer of an ASGI application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.utils.module_loading import import_string

from ..compat import application_of, routes_of
from ..gate.routing import layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, TypeAlias

    # The layers of one way through the application, outermost first. After a URLRouter comes the
    # route that leads to the next layer.
    Chain: TypeAlias = list[Any]

__all__ = ["chains_of", "site_chains"]


def site_chains() -> list[Chain]:
    """Return the chains of ``settings.ASGI_APPLICATION``, or none if it cannot be imported."""
    try:
        return [*chains_of(import_string(settings.ASGI_APPLICATION))]
    except Exception:
        # E004 or W012 reports this.
        return []


def chains_of(application: Any, above: Sequence[Any] = ()) -> Iterator[Chain]:
    """Yield the chains of ``application``. Each begins with the layers ``above``."""
    chain = [*above, *layers(application)]
    last: Any = chain[-1]
    below: list[Sequence[Any]]
    if isinstance(last, ProtocolTypeRouter):
        below = [(application,) for application in last.application_mapping.values()]
    elif isinstance(last, URLRouter):
        below = [(route, application_of(route)) for route in routes_of(last)]
    else:
        below = []
    if not below:
        yield chain
    for *route, child in below:
        yield from chains_of(child, [*chain, *route])
