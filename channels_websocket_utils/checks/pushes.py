"""Check of the pushes: does a command or task push in a process that reaches no connection?"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from channels.layers import InMemoryChannelLayer
from django.apps import apps
from django.core.checks import Warning, register
from django.core.exceptions import ImproperlyConfigured

from ..conf import get_setting
from .deployment import layer_class

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from django.core.checks import CheckMessage

__all__ = ["check_pushes"]

# What runs in a process of its own, without connections: commands, and the tasks of a queue.
_PLACES = ("management/commands/*.py", "tasks.py", "tasks/*.py")
_PUSHES = {"push_to_user", "apush_to_user"}


@register
def check_pushes(**kwargs: Any) -> list[CheckMessage]:
    """Report commands and tasks that push to users without a shared channel layer (W013)."""
    try:
        alias = get_setting("CHANNEL_LAYER")
        layer = layer_class(alias)
    except (ImportError, ImproperlyConfigured):
        # E001 reports this, or Channels if the layer cannot be imported.
        return []
    if layer is not None and not issubclass(layer, InMemoryChannelLayer):
        return []
    state = "is in memory" if layer is not None else "does not exist"
    return [
        Warning(
            f"{file} calls push_to_user(), and the channel layer {alias!r} {state}: a push reaches "
            "only connections of its own process, and commands and tasks have none.",
            hint="Configure a layer that all processes share in CHANNEL_LAYERS, such as "
            "channels_redis.",
            id="channels_websocket_utils.W013",
        )
        for file in _files()
        if _calls_push(file)
    ]


def _files() -> Iterator[Path]:
    for app in apps.get_app_configs():
        for place in _PLACES:
            yield from sorted(Path(app.path).glob(place))


def _calls_push(file: Path) -> bool:
    try:
        source = file.read_text(encoding="utf-8")
        # Most files need not be parsed.
        tree = ast.parse(source) if "push_to_user" in source else ast.Module([], [])
    except (OSError, ValueError, SyntaxError):
        # The command itself then fails, with its own error.
        return False
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(getattr(call, "id", getattr(call, "attr", None)) in _PUSHES for call in calls)
