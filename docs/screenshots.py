"""
Take the pictures of docs/sample_site.rst, and one of each page of the docs: ``make screenshots``.

The pictures of the sample site and its admin show the running site, in states that the tests check.
"""

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.support.board_states import STATES, Stage
from tests.support.browser import chromium
from tests.support.sample_site_fixtures import SAMPLE_SITE, running_site

ROOT = SAMPLE_SITE.parent
IMAGES = ROOT / "docs/images/sample_site"
# Pictures of the pages of the docs, to look at. They are not committed.
PAGES = ROOT / "build/pages"
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
# The end of the file's name, the size and the colour scheme.
EVERY_WAY = [
    ("desktop_light", DESKTOP, "light"),
    ("desktop_dark", DESKTOP, "dark"),
    ("phone_light", PHONE, "light"),
    ("phone_dark", PHONE, "dark"),
]
# The board is longer than a desktop's window.
WHOLE_BOARD = [
    (name, {**size, "height": 1160} if size is DESKTOP else size, scheme)
    for name, size, scheme in EVERY_WAY
]
ON_DESKTOP, DARK_DESKTOP, ON_PHONE, DARK_PHONE = ([way] for way in EVERY_WAY)


def admin_tokens(stage):
    stage.site.sql("DELETE FROM channels_websocket_utils_websockettoken")
    stage.board("ben")
    # An unused token.
    stage.visitor("ben").ask_for_token()
    stage.board("ada")
    return stage.open("ada", "/admin/channels_websocket_utils/websockettoken/")


def admin_users(stage):
    page = stage.open("ada", "/admin/auth/user/")
    page.get_by_role("row", name="ben").get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option(label="Disconnect: end all live WebSockets")
    return page


def admin_token(stage):
    page = admin_tokens(stage)
    page.locator("#result_list tbody th a").first.click()
    return page


def docs(stage):
    page = stage.open()
    page.goto((ROOT / "build/docs/index.html").as_uri())
    return page


PICTURES = [
    (STATES["full_board"], WHOLE_BOARD),
    (STATES["login"], EVERY_WAY),
    (STATES["report_running"], ON_DESKTOP),
    (STATES["report_done"], ON_DESKTOP),
    (STATES["waiting"], ON_PHONE),
    (STATES["signed_out"], DARK_PHONE),
    (STATES["account"], ON_PHONE),
    (STATES["refused_page"], DARK_PHONE),
    (STATES["live_sockets"], ON_DESKTOP + DARK_PHONE),
    (admin_tokens, ON_DESKTOP + DARK_DESKTOP),
    (admin_token, ON_DESKTOP),
    (admin_users, ON_DESKTOP),
    (docs, ON_DESKTOP + DARK_DESKTOP),
]


def keep(picture, path):
    """Write a PNG with its 256 most common colours, which makes it small."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in commonest(image) for part in colour])
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def commonest(image):
    """Return the most common colours, without those that Pillow would confuse with them."""
    chosen = []
    for _, colour in sorted(image.getcolors(image.width * image.height), reverse=True):
        if all(max(map(distance, colour, other)) > 7 for other in chosen):
            chosen.append(colour)
    return chosen[:256]


def distance(one, other):
    return abs(one - other)


def keep_pages(browser):
    page = browser.new_page(viewport=DESKTOP)
    for file in sorted((ROOT / "build/docs").glob("*.html")):
        if file.stem not in ("genindex", "py-modindex", "search"):
            page.goto(file.as_uri())
            keep(page.screenshot(), PAGES / f"{file.stem}.png")
    page.close()


def main():
    for folder in (IMAGES, PAGES):
        folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_site(Path(folder)) as site,
        sync_playwright() as playwright,
        chromium(playwright) as browser,
    ):
        keep_pages(browser)
        for state, ways in PICTURES:
            with Stage(site, browser) as stage:
                page = state(stage)
                for way, size, scheme in ways:
                    page.set_viewport_size(size)
                    page.emulate_media(color_scheme=scheme)
                    keep(page.screenshot(), IMAGES / f"{state.__name__}_{way}.png")


if __name__ == "__main__":
    main()
