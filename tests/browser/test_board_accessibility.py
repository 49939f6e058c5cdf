"""The accessibility of the sample site, on phones and desktops, and with the keyboard only."""

import pytest
from playwright.sync_api import expect

from ..support.board_states import STATES, Stage, expect_state
from ..support.helpers import ROOT
from ..support.sample_site_fixtures import PASSWORDS, running_site

pytestmark = [pytest.mark.browser, pytest.mark.slow]

AXE = ROOT / "node_modules/axe-core/axe.min.js"
# The violations that axe finds, one line each. By default axe uses all stable rules.
FOUND = """async () => {
  const { violations } = await axe.run({ resultTypes: ["violations"] })
  return violations.flatMap(({ id, help, nodes }) =>
    nodes.map(({ html }) => `${id}: ${help}: ${html.slice(0, 200)}`))
}"""
# Whether users can see the element: it has an outline, is on the screen, and nothing covers it.
IS_SEEN = """(element) => {
  const { outlineStyle, outlineWidth } = getComputedStyle(element)
  const { x, y, width, height } = element.getBoundingClientRect()
  const shown = document.elementFromPoint(x + width / 2, y + height / 2)
  return outlineStyle !== "none" && parseFloat(outlineWidth) >= 2 && element.contains(shown)
}"""
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("board")) as site:
        yield site


@pytest.fixture
def signed_in(stage):
    """A function that signs a user in with the keyboard only, on a phone."""

    def sign_in(username):
        page = stage.open()
        page.set_viewport_size(PHONE)
        # The field for the name has the focus at first.
        page.keyboard.type(username)
        page.keyboard.press("Tab")
        page.keyboard.type(PASSWORDS[username])
        page.keyboard.press("Enter")
        expect_state(page, "Live")
        return page

    return sign_in


@pytest.fixture
def stage(site, browser):
    with Stage(site, browser) as stage:
        yield stage


def audit(page):
    """Return the violations of a page by width and color scheme."""
    # Evaluate the code, because the policy of the page forbids an added script.
    page.evaluate(f"() => {{ {AXE.read_text()} }}")
    found = {}
    for size in (PHONE, DESKTOP):
        page.set_viewport_size(size)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found[size["width"], scheme] = page.evaluate(FOUND)
    return found


@pytest.mark.axe
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing(stage, state):
    page = STATES[state](stage)

    found = audit(page)

    assert found == {(width, scheme): [] for width in (390, 1280) for scheme in ("light", "dark")}


@pytest.mark.axe
def test_axe_finds_seeded_mistakes(stage):
    page = stage.open()
    page.evaluate("document.querySelector('label').remove()")
    page.evaluate("document.body.style.color = 'silver'")

    found = audit(page)

    assert any(line.startswith("label: ") for line in found[390, "light"])
    assert any(line.startswith("color-contrast: ") for line in found[1280, "light"])


def tab_to(page, target):
    """Press Tab until ``target`` has the focus. Each focused element must be visible."""
    for _ in range(100):
        page.keyboard.press("Tab")
        focused = page.evaluate_handle("document.activeElement").as_element()
        if focused.evaluate("(element) => element === document.body"):
            # Between the last and the first element the browser's own buttons have the focus.
            continue
        assert focused.evaluate(IS_SEEN), focused.evaluate("(element) => element.outerHTML")
        if target.evaluate("(element) => element === document.activeElement"):
            return
    raise AssertionError(f"Tab does not reach {target}")


def test_keyboard_posts_a_note_and_marks_it_done(stage, signed_in):
    stage.clear()
    page = signed_in("ben")

    tab_to(page, page.get_by_label("New note"))
    page.keyboard.type("Typed, not clicked")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#notes .note")).to_have_count(1)
    tab_to(page, page.get_by_role("button", name="Done: Typed, not clicked"))
    page.keyboard.press("Space")

    reopen = page.get_by_role("button", name="Reopen: Typed, not clicked")
    expect(reopen).to_be_focused()
    assert reopen.evaluate(IS_SEEN)


def test_keyboard_starts_and_cancels_the_report(signed_in):
    page = signed_in("ben")
    start = page.get_by_role("button", name="Make the report")

    tab_to(page, start)
    page.keyboard.press("Enter")
    expect(page.get_by_role("progressbar")).to_be_visible()
    tab_to(page, page.get_by_role("button", name="Cancel"))
    page.keyboard.press("Enter")

    expect(page.get_by_role("progressbar")).to_be_hidden()
    expect(page.locator("#report dl")).to_have_count(0)
    expect(start).to_be_focused()
    assert start.evaluate(IS_SEEN)


def test_keyboard_publishes_an_announcement(stage, signed_in):
    stage.clear()
    page = signed_in("ada")

    tab_to(page, page.get_by_label("Text for everyone"))
    page.keyboard.type("Fire drill at 03:00")
    tab_to(page, page.get_by_role("button", name="Publish"))
    page.keyboard.press("Enter")

    expect(page.locator("#announcement .text")).to_have_text("Fire drill at 03:00")


@pytest.mark.parametrize("where", ["here", "everywhere"])
def test_keyboard_signs_out(stage, signed_in, where):
    page = signed_in("ben")

    if where == "everywhere":
        tab_to(page, page.get_by_role("link", name="Ben"))
        page.keyboard.press("Enter")
        page.wait_for_url("**/account/")
        tab_to(page, page.get_by_role("button", name="Sign out everywhere"))
    else:
        tab_to(page, page.get_by_role("button", name="Sign out"))
    page.keyboard.press("Enter")

    expect(page).to_have_url(f"{stage.site.url}/login/")
    expect(page.get_by_label("Name")).to_be_focused()
