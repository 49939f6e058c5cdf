"""Count the work of a function in steps, which do not depend on the speed of the machine."""

import re
import sys
from urllib.parse import quote, unquote

from channels_websocket_utils.tokens import shape


def count_steps(function, *args):
    """Return how many calls of Python and C functions ``function(*args)`` makes, and its result."""
    steps = 0

    def count(frame, event, argument):
        nonlocal steps
        steps += event in ("call", "c_call")

    earlier = sys.getprofile()
    sys.setprofile(count)
    try:
        result = function(*args)
    finally:
        sys.setprofile(earlier)
    return steps, result


def earlier_mask(text):
    """Mask the escaped tokens of ``text`` as earlier versions did: each text, of any size."""

    def mask_run(found):
        plain = found[0]
        for _ in range(8):
            before = plain
            plain = unquote(re.sub("%(?:25)+", "%", plain), encoding="latin1")
            if plain == before:
                break
        masked = shape._SECRET.sub(shape._placeholder, plain)
        return found[0] if masked == plain else quote(masked, safe="", encoding="latin1")

    return re.sub(r"[A-Za-z0-9_%-]{24,}", mask_run, text) if "%" in text else text
