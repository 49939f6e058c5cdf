"""
Draw the package for CONTRIBUTING.rst from its imports: ``make drawings``.

Each layer is a band with a box for each of its files. A layer imports itself and the layers below
it, so arrows show only the imports inside a layer. An arrow is left out if there is a longer way.
"""

import ast
import random
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.unit.test_architecture import (
    LAYERS,
    PACKAGE,
    find_arrows,
    name_of,
    reaches,
    read_sources,
)

DRAWING = Path(__file__).parent / "images/package.svg"

# Of the layers that are not one folder. A folder has the first line of its docstring.
CAPTIONS = {
    "foundations": "settings, wire protocol, database tables, threads",
    "public modules": "what a site imports, and what Django finds by its name",
    "plugins": "loaded by Django and by pytest",
}

# A point of a row: a box, by its name, or (box, box, row) where an arrow passes through a row.
WIDTH, MARGIN, GAP, LANE = 1000, 24, 14, 10
BOX, ROW, HEAD, BETWEEN = 28, 56, 40, 26
SWEEPS, TRIES = 30, 60

STYLE = """
    .paper { fill: #ffffff } .band { fill: #f1f3f5 } .box { fill: #ffffff; stroke: #495057 }
    .arrow { fill: none; stroke: #1c7ed6; stroke-width: 1.3 } .head { fill: #1c7ed6 }
    .down { fill: none; stroke: #868e96; stroke-width: 3 } .tip { fill: #868e96 }
    text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #212529 }
    .title { font: 600 16px ui-monospace, Menlo, Consolas, monospace }
    .caption { font: 14px system-ui, sans-serif; fill: #495057 }
    @media (prefers-color-scheme: dark) {
      .paper { fill: #131416 } .band { fill: #1f2226 } .box { fill: #131416; stroke: #adb5bd }
      .arrow { stroke: #74c0fc } .head { fill: #74c0fc }
      text { fill: #f1f3f5 } .caption { fill: #ced4da }
    }"""


@dataclass
class Band:
    """A layer of the package: its boxes, the arrows between them, and their places."""

    title: str
    caption: str
    boxes: list
    arrows: set
    rows: dict = field(default_factory=dict)
    chains: list = field(default_factory=list)
    x: dict = field(default_factory=dict)

    @property
    def height(self):
        return HEAD + (max(self.rows.values()) + 1) * ROW - (ROW - BOX) + 14


def bands():
    """Return the bands of the package, the highest layer first, with all places."""
    sources = read_sources()
    arrows = find_arrows(sources)
    found = []
    for title, tops in reversed(LAYERS.items()):
        files = [file for file in map(name_of, sources) if file.split("/")[0] in tops]
        is_folder = tops == {title}
        # The layer of a folder shows its files. Of other folders it shows only the name.
        boxes = {file: box_of(file, is_folder) for file in files}
        inside = {
            (boxes[file], boxes[other])
            for file, other in arrows
            if {file, other} <= {*files} and boxes[file] != boxes[other]
        } - {(None, box) for box in boxes.values()}
        caption = summary(sources[f"{title}/__init__.py"]) if is_folder else CAPTIONS[title]
        band = Band(
            f"{title}/" if is_folder else title,
            caption,
            sorted({*boxes.values()} - {None}),
            {pair for pair in inside if not reaches(inside - {pair}, *pair)},
        )
        arrange(band)
        found.append(band)
    return found


def box_of(file, is_folder):
    """Return the text of the box of ``file``; ``None`` for a folder's own ``__init__``."""
    top, _, rest = file.partition("/")
    if is_folder:
        return f"{rest}.py" if rest else None
    return f"{top}/" if (PACKAGE / top).is_dir() else f"{top}.py"


def summary(source):
    return ast.get_docstring(ast.parse(source)).splitlines()[0].rstrip(".")


def arrange(band):
    """Set the row of each box, 0 at the top, the chains of points of the arrows, and each x."""

    def height(box):
        return max((height(other) + 1 for each, other in band.arrows if each == box), default=0)

    joined = {box for pair in band.arrows for box in pair}
    top = max(map(height, joined), default=0)
    band.rows = {box: top - height(box) for box in band.boxes if box in joined}
    for box in band.boxes:
        if box not in joined:
            # Any row is right: the one with the most space, or a new one below.
            row = min(range(top, -1, -1), key=lambda row: length_of(row, band.rows))
            if length_of(row, band.rows) + width_of(box) > WIDTH - 4 * MARGIN:
                row = top = top + 1
            band.rows[box] = row
    band.chains = [
        [box, *((box, other, row) for row in range(band.rows[box] + 1, band.rows[other])), other]
        for box, other in sorted(band.arrows)
    ]
    band.x = place(band.chains, band.rows)


def length_of(row, rows):
    return sum(width_of(box) + GAP for box in rows if rows[box] == row)


def width_of(point):
    return 2 * LANE if isinstance(point, tuple) else 8 * len(point) + 20


def place(chains, rows):
    """Return the x of every point: near those that it is joined to, and beside none too closely."""
    levels, neighbours = {}, {}
    for chain in chains:
        for point in chain:
            row = rows[point] if isinstance(point, str) else point[2]
            neighbours.setdefault(point, [])
            if point not in levels.setdefault(row, []):
                levels[row].append(point)
        for upper, lower in pairwise(chain):
            neighbours[upper].append(lower)
            neighbours[lower].append(upper)
    x, levels = min(
        (swept(levels, neighbours, seed) for seed in range(TRIES)),
        key=lambda found: sum(
            abs(found[0][upper] - found[0][lower])
            for chain in chains
            for upper, lower in pairwise(chain)
        ),
    )
    add_unjoined(x, rows, levels)
    return centered(x)


def swept(levels, neighbours, seed):
    """Return an x for each point and the order of each level, from one order to begin with."""
    order, x = random.Random(seed), {}  # noqa: S311
    levels = {row: order.sample(level, len(level)) for row, level in sorted(levels.items())}
    for level in levels.values():
        x.update(spread(level, dict.fromkeys(level, WIDTH / 2)))
    for sweep in range(SWEEPS):
        for row in sorted(levels, reverse=bool(sweep % 2)):
            wanted = {
                point: sum(x[each] for each in neighbours[point]) / len(neighbours[point])
                for point in levels[row]
            }
            levels[row].sort(key=lambda point: (wanted[point], str(point)))
            x.update(spread(levels[row], wanted))
    return x, levels


def add_unjoined(x, rows, levels):
    """Put the boxes without arrows at the right end of their rows."""
    for row in sorted({*rows.values()}):
        joined = levels.get(row, [])
        unjoined = [box for box in sorted(rows) if rows[box] == row and box not in joined]
        right = x[joined[-1]] if joined else WIDTH / 2
        wanted = {**{point: x[point] for point in joined}, **dict.fromkeys(unjoined, right)}
        if joined:
            right += width_of(joined[-1]) / 2
            for box in unjoined:
                wanted[box] = right + GAP + width_of(box) / 2
                right = wanted[box] + width_of(box) / 2
        x.update(spread([*joined, *unjoined], wanted))


def centered(x):
    left = min(place - width_of(point) / 2 for point, place in x.items())
    right = max(place + width_of(point) / 2 for point, place in x.items())
    return {point: place + (WIDTH - left - right) / 2 for point, place in x.items()}


def spread(level, wanted):
    """Return an x for each point of ``level``, in this order, near to the ``wanted``."""
    # Blocks of points that touch: [the offsets of its points, its width, where it wants to begin].
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
    free = WIDTH - 2 * MARGIN + GAP - width
    return min(max(sum(starts) / len(starts), 2 * MARGIN), max(free, 2 * MARGIN))


def draw():
    """Return the drawing, as the text of an SVG."""
    found = bands()
    height = sum(band.height + BETWEEN for band in found) - BETWEEN + 2 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "  <title>The layers of channels_websocket_utils, their files and imports</title>",
        f"  <style>{STYLE}\n  </style>",
        marker("head", 8),
        marker("tip", 4),
        f'  <rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
    ]
    top = MARGIN
    for band in found:
        if top > MARGIN:
            lines.append(
                f'  <path class="down" marker-end="url(#tip)" d="M{WIDTH / 2:g},{top - BETWEEN + 3}'
                f' L{WIDTH / 2:g},{top - 2}"/>'
            )
        lines += draw_band(band, top)
        top += band.height + BETWEEN
    return "\n".join([*lines, "</svg>"]) + "\n"


def marker(name, size):
    return (
        f'  <marker id="{name}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="{size}"'
        f' markerHeight="{size}" orient="auto"><path class="{name}" d="M0,0 L8,4 L0,8 z"/></marker>'
    )


def draw_band(band, top):
    """Return the lines of ``band``, whose upper edge is at ``top``."""

    def y(point):
        row = band.rows[point] if isinstance(point, str) else point[2]
        return top + HEAD + row * ROW + BOX / 2

    left = MARGIN + 16
    lines = [
        f'  <rect class="band" x="{MARGIN}" y="{top}" width="{WIDTH - 2 * MARGIN}"'
        f' height="{band.height}" rx="6"/>',
        f'  <text class="title" x="{left}" y="{top + 25}">{band.title}</text>',
        f'  <text class="caption" x="{left + 10 * len(band.title) + 16}" y="{top + 25}">'
        f"{band.caption}</text>",
    ]
    for chain in band.chains:
        # Past each row between, an arrow goes straight down.
        edges = [(band.x[point], y(point) + end) for point in chain for end in (-BOX / 2, BOX / 2)]
        points = edges[1:-1]
        lines.append(f'  <path class="arrow" marker-end="url(#head)" d="{curve(points)}"/>')
    for box in band.boxes:
        wide = width_of(box)
        lines += [
            f'  <rect class="box" x="{band.x[box] - wide / 2:.0f}" y="{y(box) - BOX / 2:g}"'
            f' width="{wide}" height="{BOX}" rx="5"/>',
            f'  <text x="{band.x[box]:.0f}" y="{y(box) + 4:g}" text-anchor="middle">{box}</text>',
        ]
    return lines


def curve(points):
    path = "M{:.0f},{:.0f}".format(*points[0])
    for (left, upper), (right, lower) in pairwise(points):
        middle = (upper + lower) / 2
        path += f" C{left:.0f},{middle:.0f} {right:.0f},{middle:.0f} {right:.0f},{lower:.0f}"
    return path


if __name__ == "__main__":
    DRAWING.write_text(draw())
