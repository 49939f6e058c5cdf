"""
Revocation: how soon a live connection ends
===========================================

This table shows the time from an act to the close frame at the client. For a permission, it shows
the time to the first denial of a guarded call; the client makes a call every 5 ms. The time starts
when the HTTP request is sent, or when ``call_command()`` is called, so it includes the view. Two
uvicorn processes serve one site: the connection is in one process, and the act happens in the
other. ``disconnect_user`` is the management command in a third process. Each sample has its own
user, session and connection.

* *Redis*: ``channels_redis`` between the processes. Promised: 1 s.
* *drops all*: a channel layer that accepts every message and delivers none. Promised:
  ``RECHECK_INTERVAL``, here 1 s instead of 30 s, and the time of one database check. The acts
  happen at random moments of the interval.
* *no layer*: ``CHANNEL_LAYERS = {}``. Promised: the same.

*Ended or denied* counts the samples that were closed with 4410. For a permission, it counts the
samples that were denied, if no guarded call that was sent after the act's answer was allowed.
*Others ended* counts connections that must stay open and did not: those of another user in the same
process, and after a logout those of another browser of the same user.
"""

import asyncio
import contextlib
import random
from dataclasses import dataclass
from time import monotonic

from asgiref.sync import sync_to_async
from django.contrib.auth.models import Permission
from django.core.management import call_command

from channels_websocket_utils.utils import aget_websocket_token
from tests.support import lab
from tests.support.consumers import PERM
from tests.support.lab import LIMIT, TOLERANCE, WebSocket

PACKAGES = ["uvicorn", "websockets"]
INTERVAL = 1
ACTS = ["logout", "password change", "deactivation", "permission", "disconnect_user"]
VIEWS = {"password change": "password", "deactivation": "deactivate", "permission": "permission"}


@dataclass
class SetUp:
    layer: str
    samples: int
    # Samples at the same time. If only the timer matters, they do not slow each other down.
    lanes: int
    here: int = 0
    there: int = 0


SET_UPS = {
    "Redis": SetUp("redis", 200, 1),
    "drops all": SetUp("drops", 60, 5),
    "no layer": SetUp("none", 60, 5),
}


async def measure(small, is_kept):
    for name, set_up in SET_UPS.items():
        acts = [act for act in ACTS if not is_kept(f"{name}: {act}")]
        if not acts:
            continue
        with contextlib.ExitStack() as stack:
            layer = set_up.layer
            if layer == "redis":
                layer = stack.enter_context(lab.redis())
            stack.enter_context(lab.layer(layer))
            set_up.here = stack.enter_context(lab.uvicorn(layer, INTERVAL))
            set_up.there = stack.enter_context(lab.uvicorn(layer, INTERVAL))
            for act in acts:
                yield f"{name}: {act}", *await row(set_up, act, 3 if small else set_up.samples)


async def row(set_up, act, count):
    of_other = await open_socket(set_up, *await lab.new_user())
    samples = await lab.in_groups(lambda: sample(set_up, act), count, set_up.lanes)
    took = [time for time, _, _ in samples if time is not None]
    others_ended = sum(ended for _, _, ended in samples) + (not await of_other.is_alive())
    await of_other.leave()
    good = sum(is_good for _, is_good, _ in samples)
    p50, p99, longest = lab.spread(took)
    cells = {
        "samples": count,
        "p50 ms": p50,
        "p99 ms": p99,
        "max ms": longest,
        "ended or denied": good,
        "others ended": others_ended,
    }
    broken = []
    if good < count or others_ended:
        broken.append("a connection stayed open or ended wrongly")
    if max(took, default=0) > TOLERANCE * INTERVAL:
        broken.append(f"longer than {TOLERANCE * INTERVAL} s")
    return cells, broken


async def sample(set_up, act):
    """Return the seconds, whether the result is as promised, and how many others ended."""
    permission = await Permission.objects.aget(codename=PERM.partition(".")[2])
    user, session = await lab.new_user([permission])
    socket = await open_socket(set_up, user, session)
    stays = None
    if act == "logout":
        stays = await open_socket(set_up, user, await sync_to_async(lab.sign_in)(user))
    if set_up.layer != "redis":
        await asyncio.sleep(INTERVAL * random.random())  # noqa: S311
    began = monotonic()
    acting = asyncio.ensure_future(perform(set_up, act, user, session))
    if act == "permission":
        is_good = await is_denied(socket, acting)
    else:
        is_good = await socket.closed(LIMIT) == 4410
    took = monotonic() - began
    await acting
    ended = 0
    if stays is not None:
        ended = not await stays.is_alive()
        await stays.leave()
    await socket.leave()
    return took if is_good else None, is_good, ended


async def open_socket(set_up, user, session):
    path = f"/async/{await aget_websocket_token(user, session=session)}"
    socket = await WebSocket.open(set_up.here, path, session)
    await socket.next_for("websocket.ready")
    return socket


async def perform(set_up, act, user, session):
    """Perform the act, and return the time at which it was done."""
    if act == "disconnect_user":
        await sync_to_async(call_command)("disconnect_websocket_user", user.username, verbosity=0)
    elif act == "logout":
        await lab.post(set_up.there, "/logout/", session)
    else:
        await lab.post(set_up.there, f"/act/{VIEWS[act]}/{user.pk}/")
    return monotonic()


async def is_denied(socket, acting):
    """Call until denied; return whether all calls that began after the act were denied."""
    allowed_at = 0
    deadline = monotonic() + LIMIT
    while monotonic() < deadline:
        asked_at = monotonic()
        answer = await socket.call("guarded")
        if not isinstance(answer, dict):
            return False
        if "error" in answer:
            is_right = answer["error"]["code"] == "permission_denied"
            return is_right and allowed_at <= await acting
        allowed_at = asked_at
        await asyncio.sleep(0.005)
    return False
