"""The route of a topic class: its names, in Django's path() syntax, and their parameters."""

from __future__ import annotations

import re
from itertools import islice, product
from typing import TYPE_CHECKING
from uuid import UUID

from django.urls import converters

from ..compat import path_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

__all__ = ["MAX_NAME", "TopicRoute"]


# Characters.
MAX_NAME = 200
_PARAMETER = re.compile(r"<(?:[^>:]+:)?([^>]+)>")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Names that common_name() tries for one route.
_MAX_TRIED = 1000
# A value of each converter, in which every part could be its own value too.
_SAMPLES = {
    converters.IntConverter: 12,
    converters.PathConverter: "ab/cd",
    converters.SlugConverter: "ab-cd",
    converters.StringConverter: "ab-cd.ef",
    converters.UUIDConverter: UUID(int=12),
}


class TopicRoute:
    """
    A route such as ``"orders/<int:pk>"``, which ``read()`` and ``render()`` apply.

    A name is canonical: it renders to itself. So a topic has one name. Raises
    ``ImproperlyConfigured`` for an unknown converter or a parameter that is no identifier, as
    ``path()`` does.
    """

    def __init__(self, route: str) -> None:
        self._route = route
        self._pattern, self._converters = path_pattern(route)

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the parameters."""
        return frozenset(self._converters)

    def render(self, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """
        Return the name for the parameters ``values``, and the parameters that the name carries.

        ``values`` may have another type: the text ``"42"`` for an ``int``. Raises ``TypeError`` for
        a missing or unknown parameter, and ``ValueError`` for a value that the route cannot carry.
        """
        if values.keys() != self.parameters:
            needed = ", ".join(sorted(self.parameters)) or "none"
            raise TypeError(
                f"The parameters of the topic {self._route!r} are: {needed}. "
                f"Given: {', '.join(sorted(values)) or 'none'}."
            )
        texts = {name: self._text(name, value) for name, value in values.items()}
        name = _PARAMETER.sub(lambda found: texts[found[1]], self._route)
        carried = self.read(name)
        # Two parameters with slashes could be divided in another way.
        if carried is None or any(self._text(each, carried[each]) != texts[each] for each in texts):
            raise ValueError(f"The topic {self._route!r} cannot carry {dict(values)!r}.")
        return name, carried

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the parameters that ``name`` carries, or ``None`` if it is not canonical."""
        if len(name) > MAX_NAME or _CONTROL.search(name) or not _is_unicode(name):
            return None
        found = self._pattern.search(name)
        if found is None:
            return None
        texts = found.groupdict()
        try:
            values = {each: self._converters[each].to_python(texts[each]) for each in texts}
            is_canonical = all(self._text(each, values[each]) == texts[each] for each in texts)
        except ValueError:
            return None
        return values if is_canonical else None

    def problem(self) -> str | None:
        """
        Return why names cannot be made from parameters, ``None`` if they can, as far as is known.

        For this, values of Django's own converters are rendered. Values of others are not known.
        """
        for name, converter in self._converters.items():
            for method in ("to_python", "to_url"):
                if not callable(getattr(converter, method, None)):
                    return f"the converter of {name!r} has no method {method}()"
        if len(_PARAMETER.sub("", self._route)) > MAX_NAME - len(self._converters):
            return f"its names are longer than {MAX_NAME} characters"
        samples = {
            name: _SAMPLES[type(converter)]
            for name, converter in self._converters.items()
            if type(converter) in _SAMPLES
        }
        if samples.keys() == self.parameters:
            try:
                self.render(samples)
            except ValueError:
                return "two parameters without a text between them that neither can contain"
        return None

    def common_name(self, other: TopicRoute) -> str | None:
        """
        Return a name of both routes, ``None`` if none was found.

        Values of Django's own converters are tried, and the texts of both routes. So a name that
        only a converter of the site could make is not found.
        """
        texts = [*self._texts(), *other._texts()]
        names = [*self._names(texts), *other._names(texts)]
        both = (each for each in names if self.read(each) is not None)
        return next((each for each in both if other.read(each) is not None), None)

    def _texts(self) -> list[str]:
        """Return what is between the parameters and the slashes."""
        return [text for text in _PARAMETER.sub("/", self._route).split("/") if text]

    def _names(self, texts: list[str]) -> Iterator[str]:
        """Yield texts of the form of the route, with ``texts`` in the place of parameters too."""
        values = [
            [str(_SAMPLES[type(each)]), *texts] if type(each) in _SAMPLES else texts
            for each in self._converters.values()
        ]
        for each in islice(product(*values), _MAX_TRIED):
            chosen = dict(zip(self._converters, each, strict=True))
            yield _PARAMETER.sub(lambda found, chosen=chosen: chosen[found[1]], self._route)  # type: ignore[misc]

    def _text(self, name: str, value: object) -> str:
        try:
            text = self._converters[name].to_url(value)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{name!r} of the topic {self._route!r}: {error}") from error
        return str(text)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
