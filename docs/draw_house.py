"""
Draws the house of CONTRIBUTING.rst from the imports themselves: ``make drawings``.

A floor is a band, and a room a box. An arrow goes from a room to one that it imports; where there
is a longer way too, the arrow is left out, for all of them would hide the house.
"""

from itertools import pairwise
from pathlib import Path

from tests.unit.test_architecture import FLOORS, PACKAGE, arrows, reaches

HOUSE = Path(__file__).parent / "images/house.svg"

# Of these are several files.
FOLDERS = {"stores", "migrations", "templatetags", "management"}

WIDTH, MARGIN, STEP, BOX, GAP, LANE = 1000, 60, 60, 28, 16, 10
SWEEPS = 30

STYLE = """
    .paper { fill: #ffffff } .floor { fill: #f1f3f5 } .box { fill: #ffffff; stroke: #495057 }
    .arrow { fill: none; stroke: #1c7ed6; stroke-width: 1.2 } .head { fill: #1c7ed6 }
    text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #212529 }
    .number { font: 600 16px system-ui, sans-serif; fill: #868e96 }
    @media (prefers-color-scheme: dark) {
      .paper { fill: #131416 } .floor { fill: #1f2226 } .box { fill: #131416; stroke: #adb5bd }
      .arrow { stroke: #74c0fc } .head { fill: #74c0fc }
      text { fill: #f1f3f5 } .number { fill: #868e96 }
    }"""


def imports():
    """Return the arrows of the package between which there is no longer way, sorted."""
    files = PACKAGE.rglob("*.py")
    found = arrows({file.relative_to(PACKAGE): file.read_text() for file in files})
    return sorted(
        (room, other) for room, other in found if not reaches(found - {(room, other)}, room, other)
    )


def rows_of(found):
    """Return the row of each room, 0 at the top, and of each floor its first and last row."""

    def height(room):
        below = [b for a, b in found if a == room and FLOORS[b] == FLOORS[room]]
        return max(map(height, below), default=-1) + 1

    rows, bands, top = {}, {}, 0
    for floor in sorted(set(FLOORS.values()), reverse=True):
        rooms = [room for room in FLOORS if FLOORS[room] == floor]
        joined = {room for pair in found if {*pair} <= {*rooms} for room in pair}
        last = top + max(map(height, rooms))
        rows.update({room: last - height(room) for room in rooms if room in joined})
        for room in rooms:
            if room not in joined:
                # Any row of the floor will do: the one with the most space, or the lowest of these.
                rows[room] = min(range(last, top - 1, -1), key=lambda row: length_of(row, rows))
        bands[floor] = top, last
        top = last + 1
    return rows, bands


def length_of(row, rows):
    return sum(width_of(room) + GAP for room in rows if rows[room] == row)


def chains_of(found, rows):
    """Return for each arrow the points on its way: its rooms, and a lane in each row between."""
    return [
        [room, *((room, other, row) for row in range(rows[room] + 1, rows[other])), other]
        for room, other in found
    ]


def width_of(point):
    return 2 * LANE if isinstance(point, tuple) else 8 * len(label(point)) + 20


def label(room):
    return f"{room}/" if room in FOLDERS else f"{room}.py"


def place(chains, rows):
    """Return the x of every point: near those that it is joined to, and beside none too closely."""
    levels, joined = {}, {}
    for point in [*sorted(rows), *(each for chain in chains for each in chain[1:-1])]:
        row = rows[point] if isinstance(point, str) else point[2]
        levels.setdefault(row, []).append(point)
        joined[point] = []
    for chain in chains:
        for upper, lower in pairwise(chain):
            joined[upper].append(lower)
            joined[lower].append(upper)
    x = {}
    for level in levels.values():
        x.update(spread(level, dict.fromkeys(level, WIDTH / 2)))
    for sweep in range(SWEEPS):
        for row in sorted(levels, reverse=bool(sweep % 2)):
            level = levels[row]
            wanted = {
                point: sum(x[each] for each in joined[point]) / len(joined[point])
                if joined[point]
                else x[point]
                for point in level
            }
            level.sort(key=lambda point: (wanted[point], str(point)))
            x.update(spread(level, wanted))
    return x


def spread(level, wanted):
    """Return an x for each point of ``level``, in this order, near to the ``wanted``."""
    # Blocks of points that touch: [its points' offsets, its width, where it wants to begin].
    blocks = []
    for point in level:
        half = width_of(point) / 2
        blocks.append(([(point, half)], 2 * half + GAP, [wanted[point] - half]))
        while len(blocks) > 1 and start(blocks[-2]) + blocks[-2][1] > start(blocks[-1]):
            points, width, starts = blocks.pop()
            before, length, begun = blocks.pop()
            points = [*before, *((each, offset + length) for each, offset in points)]
            blocks.append((points, length + width, [*begun, *(each - length for each in starts)]))
    return {point: start(block) + offset for block in blocks for point, offset in block[0]}


def start(block):
    _, width, starts = block
    free = WIDTH - MARGIN - GAP - width
    return min(max(sum(starts) / len(starts), MARGIN), max(free + GAP, MARGIN))


def draw():
    """Return the drawing, as the text of an SVG."""
    found = imports()
    rows, bands = rows_of(found)
    chains = chains_of(found, rows)
    x = place(chains, rows)
    height = (max(rows.values()) + 1) * STEP + 20

    def y(point):
        return (rows[point] if isinstance(point, str) else point[2]) * STEP + 10 + STEP / 2

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "  <title>The modules of channels_websocket_utils and their imports</title>",
        f"  <style>{STYLE}\n  </style>",
        '  <marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8"'
        ' orient="auto"><path class="head" d="M0,0 L8,4 L0,8 z"/></marker>',
        f'  <rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
    ]
    for floor, (first, last) in bands.items():
        top, tall = first * STEP + 13, (last - first + 1) * STEP - 6
        lines += [
            f'  <rect class="floor" x="8" y="{top}" width="{WIDTH - 16}" height="{tall}" rx="6"/>',
            f'  <text class="number" x="22" y="{top + tall / 2 + 6:g}">{floor}</text>',
        ]
    for chain in chains:
        points = [(x[point], y(point)) for point in chain]
        points[0] = points[0][0], points[0][1] + BOX / 2
        points[-1] = points[-1][0], points[-1][1] - BOX / 2
        path = "M{:.0f},{:.0f}".format(*points[0])
        for (left, upper), (right, lower) in pairwise(points):
            middle = (upper + lower) / 2
            path += f" C{left:.0f},{middle:.0f} {right:.0f},{middle:.0f} {right:.0f},{lower:.0f}"
        lines.append(f'  <path class="arrow" marker-end="url(#head)" d="{path}"/>')
    for room in sorted(rows):
        wide = width_of(room)
        left, top = x[room] - wide / 2, y(room) - BOX / 2
        lines += [
            f'  <rect class="box" x="{left:.0f}" y="{top:.0f}" width="{wide}" height="{BOX}"'
            ' rx="5"/>',
            f'  <text x="{x[room]:.0f}" y="{y(room) + 4:.0f}" text-anchor="middle">'
            f"{label(room)}</text>",
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    HOUSE.write_text(draw())
