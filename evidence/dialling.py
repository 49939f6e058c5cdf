"""When WebSocketManager dials: the constants of the script, for simulated pages in Python."""

import re
from pathlib import Path

__all__ = ["ATTEMPT_LIMIT", "SILENCE_LIMIT", "STEADY_AFTER", "STOPS", "TOO_MANY_WAIT", "pause"]

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "channels_websocket_utils/static/websocket_utils/WebSocketManager.js"
PAUSE = r"(\d+) \+ Math\.random\(\) \* Math\.min\((\d+), (\d+) \* ([\d.]+) \*\* failures\)"


def found(pattern):
    """Return the groups of the only match of ``pattern`` in the script, as numbers."""
    (match,) = re.finditer(pattern, SCRIPT.read_text(), re.M)
    return [float(group) for group in match.groups()]


def seconds(name):
    """Return a constant of the script, which has milliseconds, in seconds."""
    (value,) = found(rf"^  const {name} = (\d+)$")
    return value / 1000


ATTEMPT_LIMIT = seconds("ATTEMPT_LIMIT")
SILENCE_LIMIT = seconds("SILENCE_LIMIT")
STEADY_AFTER = seconds("STEADY_AFTER")
TOO_MANY_WAIT = seconds("TOO_MANY_WAIT")
(_stops,) = re.findall(r"^  const STOPS = \{(.*)\}$", SCRIPT.read_text(), re.M)
# The close codes after which a page dials no more.
STOPS = {int(code) for code in re.findall(r"(\d+):", _stops)}
_least, _most, _first, _factor = found(PAUSE)


def pause(failures, random):
    """Return the seconds before the next dial after ``failures`` in a row; ``random`` is 0 to 1."""
    return (_least + random * min(_most, _first * _factor**failures)) / 1000
