"""Checks for tenants, which share a deployment and have separate users. They are not supported."""

from __future__ import annotations

import inspect
import threading
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING

from asgiref.local import Local
from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import Error, Warning, register

from ..compat import router

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FunctionType
    from typing import Any

    from django.core.checks import CheckMessage

__all__ = ["check_tenants"]


_PACKAGES = ("django_tenants", "tenant_schemas", "django_pgschemas")
# Enough for a router that picks one of two databases at random.
_TIMES = 32
_LIMIT = 10
# What holds a value for each request, task or thread.
_PER_CONTEXT = (ContextVar, threading.local, Local)
_DEPTH = 4
_WHY = (
    "This package does not separate tenants: a token, a push or a logout of one tenant's user "
    "reaches the user of another tenant who has the same primary key."
)
_HINT = "Run one deployment for each tenant. See docs/security.rst."


@register
def check_tenants(**kwargs: Any) -> list[CheckMessage]:
    """Report tenants in one deployment (E010), and a router that seems to choose one (W014)."""
    problems: list[CheckMessage] = [
        Error(f"{name} is used. {_WHY}", hint=_HINT, id="channels_websocket_utils.E010")
        for name in sorted(_tenant_packages())
    ]
    answer = _changing_answer()
    if answer:
        text = f"DATABASE_ROUTERS {answer}. {_WHY}"
        problems.append(Error(text, hint=_HINT, id="channels_websocket_utils.E010"))
    elif any(map(_depends_on_context, router.routers)):
        text = f"DATABASE_ROUTERS chooses the database by a value of the present context. {_WHY}"
        hint = f"If it does not choose a tenant's database, silence this check. {_HINT}"
        problems.append(Warning(text, hint=hint, id="channels_websocket_utils.W014"))
    return problems


def _tenant_packages() -> set[str]:
    names = [*settings.INSTALLED_APPS, *(each["ENGINE"] for each in settings.DATABASES.values())]
    return {name.partition(".")[0] for name in names} & {*_PACKAGES}


def _changing_answer() -> str:
    """Return what is wrong with the answers of the routers for one question, ``""`` if nothing."""
    ask: Callable[[], tuple[str, ...]] = _databases
    try:
        found = {ask() for _ in range(_TIMES)} | {Context().run(ask), _in_thread(ask)}
    except Exception as error:
        # The code of the site can raise any exception.
        return f"names no database outside a request ({type(error).__name__}: {error})"
    return f"names different databases for one model: {sorted(found)}" if len(found) > 1 else ""


def _databases() -> tuple[str, ...]:
    """Return the databases in which this package reads and writes users, sessions and its rows."""
    models: list[Any] = [*apps.get_app_config("channels_websocket_utils").get_models()]
    models.append(get_user_model())
    if apps.is_installed("django.contrib.sessions"):
        models.append(apps.get_model("sessions", "Session"))
    return tuple(router.db_for_write(model) for model in models)


def _in_thread(function: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """Return the result of ``function`` in a new thread, as the re-check calls it."""
    found: list[tuple[str, ...] | Exception] = []

    def run() -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_LIMIT)
    result = found[0] if found else TimeoutError(f"no answer within {_LIMIT} s")
    if isinstance(result, Exception):
        raise result
    return result


def _depends_on_context(site_router: Any) -> bool:
    method = getattr(type(site_router), "db_for_write", None)
    return inspect.isfunction(method) and _reads_context(method, site_router, _DEPTH)


def _reads_context(function: FunctionType, owner: Any, depth: int) -> bool:
    """Return whether ``function``, or a function that it names, names a variable of the context."""
    values = [*_named_values(function, owner)]
    return any(isinstance(value, _PER_CONTEXT) for value in values) or (
        depth > 0
        and any(
            _reads_context(value, owner, depth - 1) for value in values if inspect.isfunction(value)
        )
    )


def _named_values(function: FunctionType, owner: Any) -> Iterator[Any]:
    names = function.__code__.co_names
    spaces = [function.__globals__, vars(type(owner)), getattr(owner, "__dict__", {})]
    for name in names:
        for space in spaces:
            if name in space:
                yield space[name]
                if inspect.ismodule(space[name]):
                    yield from (getattr(space[name], each, None) for each in names)
    for cell in function.__closure__ or ():
        yield cell.cell_contents
