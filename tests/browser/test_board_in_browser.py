"""The sample site in Chromium, with two users on one board."""

import contextlib
import json
import re

import pytest
from playwright.sync_api import expect
from websockets.exceptions import ConnectionClosed

from channels_websocket_utils.tokens.digests import digest_of

from ..support.board_states import expect_state, sign_in_on
from ..support.sample_site_fixtures import LIMIT, Visitor, running_site

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# An init script, so that it records all violations of the page's policy from the beginning.
WATCH_POLICY = """
window.violations = []
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(event.violatedDirective + " " + event.blockedURI)
})
"""

# Record the close codes of a page's WebSockets, which Playwright does not report.
NOTE_CLOSE_CODES = """
window.closeCodes = []
window.WebSocket = class extends WebSocket {
  constructor(...args) {
    super(...args)
    this.addEventListener("close", (event) => window.closeCodes.push(event.code))
  }
}
"""

# After a sign-out an open board requests a token once or twice. Chromium logs each 401 as an error.
REFUSED_TOKEN = re.compile(r"status of 401 .*/websocket/token/$")
# The pages of Django's admin have no icon, so Chromium requests /favicon.ico.
NO_ICON = re.compile(r"status of 404 .*/favicon\.ico$")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("board")) as site:
        yield site


@pytest.fixture
def sign_in(site, browser):
    """A function that signs a user in, in a new browser context, and returns the page."""
    with contextlib.ExitStack() as stack:

        def sign_in(username):
            context = browser.new_context()
            stack.callback(context.close)
            context.set_default_timeout(LIMIT * 1000)
            context.add_init_script(WATCH_POLICY)
            page = context.new_page()
            # The problems of all tabs of this context.
            page.problems, page.is_signing_out = [], False
            context.on("console", lambda message: note_console(page, message))
            context.on("weberror", lambda error: page.problems.append(str(error.error)))
            page.goto(site.url)
            sign_in_on(page, username)
            return page

        yield sign_in


@pytest.fixture
def ada(sign_in):
    page = sign_in("ada")
    yield page
    assert page.problems == []
    assert page.evaluate("window.violations") == []


@pytest.fixture
def ben(sign_in):
    page = sign_in("ben")
    yield page
    assert page.problems == []
    assert page.evaluate("window.violations") == []


def note_console(page, message):
    if message.type in ("error", "warning"):
        problem = f"{message.text} {message.location['url']}"
        is_expected = page.is_signing_out and REFUSED_TOKEN.search(problem)
        if not (is_expected or NO_ICON.search(problem)):
            page.problems.append(problem)


def sign_out(page, tab):
    """Sign out in ``tab``, which is in the same browser context as ``page``."""
    page.is_signing_out = True
    tab.get_by_role("button", name="Sign out").click()


def new_tab(page, url=None):
    tab = page.context.new_page()
    tab.goto(url or page.url)
    return tab


def note_new_sockets(page):
    """Return a list to which each new WebSocket of the page is added."""
    opened = []
    page.on("websocket", lambda socket: opened.append(socket))
    return opened


def post_note(page, text):
    page.get_by_label("New note").fill(text)
    page.get_by_role("button", name="Post note").click()


def note(page, text):
    return page.locator("#notes .note", has_text=text)


def test_note_appears_for_everyone(ada, ben):
    post_note(ada, "Lift 2 is stuck on level 3")

    expect(note(ben, "Lift 2 is stuck on level 3")).to_have_count(1)
    expect(note(ada, "Lift 2 is stuck on level 3")).to_have_count(1)
    expect(ada.get_by_label("New note")).to_have_value("")
    expect(ben.locator("#announcer")).to_contain_text("New note by Ada")


def test_note_is_there_after_a_reload(ada):
    post_note(ada, "Key 14 is with the porter")
    expect(note(ada, "Key 14 is with the porter")).to_have_count(1)

    ada.reload()

    expect(note(ada, "Key 14 is with the porter")).to_have_count(1)


def test_html_in_a_note_is_text(ada, ben):
    text = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>"

    post_note(ada, text)

    expect(note(ben, "onerror").locator(".text")).to_have_text(text)
    assert ben.locator("#notes img, #notes b").count() == 0
    assert "taken" not in ben.title()


@pytest.mark.parametrize(
    ("text", "message"),
    [("   ", "Write something first."), ("x" * 501, "501 characters are too many: at most 500.")],
)
def test_form_shows_why_a_bad_note_is_refused(ada, text, message):
    post_note(ada, text)

    expect(ada.locator("#note-error")).to_have_text(message)
    # The text stays in the form.
    expect(ada.get_by_label("New note")).to_have_value(text)
    expect(ada.get_by_label("New note")).to_have_attribute("aria-invalid", "true")


def test_done_note_is_done_for_everyone(ada, ben):
    post_note(ada, "Bulb in hall 2")
    note(ben, "Bulb in hall 2").get_by_role("button", name="Done").click()

    expect(note(ada, "Bulb in hall 2")).to_have_class("note done")
    expect(note(ada, "Bulb in hall 2").get_by_role("button")).to_have_text("Reopen")


def test_both_pages_show_the_present_users(ada, ben):
    for page in (ada, ben):
        expect(page.locator("#people .person")).to_have_count(2)
        expect(page.locator("#people")).to_contain_text("Ada")
        expect(page.locator("#people")).to_contain_text("Ben")


def test_two_tabs_of_a_user_count_as_one(ada, ben):
    tab = new_tab(ben)
    expect_state(tab, "Live")
    expect(ada.locator("#people .person")).to_have_count(2)

    tab.close()
    post_note(ben, "still here")

    expect(note(ada, "still here")).to_have_count(1)
    expect(ada.locator("#people .person")).to_have_count(2)


def test_announcement_needs_the_permission_in_the_browser(ada, ben):
    ben.get_by_label("Text for everyone").fill("Free coffee")
    ben.get_by_role("button", name="Publish").click()
    expect(ben.locator("#announcement-error")).to_have_text(
        "You are not allowed to publish announcements."
    )

    ada.get_by_label("Text for everyone").fill("Fire drill at 03:00")
    ada.get_by_role("button", name="Publish").click()

    for page in (ada, ben):
        expect(page.locator("#announcement .text")).to_have_text("Fire drill at 03:00")


def test_report_shows_its_progress_and_then_its_result(ada):
    post_note(ada, "Pump 1 checked")
    expect(note(ada, "Pump 1 checked")).to_have_count(1)

    ada.get_by_role("button", name="Make the report").click()

    bar = ada.get_by_role("progressbar", name="Counting the last 24 hours")
    expect(bar).to_be_visible()
    expect(ada.locator("#report-hours")).to_contain_text(re.compile(r"^([5-9]|1\d) of 24 hours"))
    expect(ada.locator("#report dl")).to_contain_text("Busiest hour")
    expect(ada.locator("#report .bars")).to_contain_text("Ada")
    expect(bar).to_be_hidden()


def test_report_can_be_cancelled(ada):
    frames = []
    ada.on("websocket", lambda socket: socket.on("framesent", lambda frame: frames.append(frame)))
    ada.reload()
    expect_state(ada, "Live")
    button = ada.get_by_role("button", name="Make the report")
    button.click()
    expect(ada.locator("#report-hours")).to_contain_text(re.compile(r"^[1-9]"))

    ada.get_by_role("button", name="Cancel").click()

    expect(ada.get_by_role("progressbar")).to_be_hidden()
    assert any("websocket.cancel" in str(frame) for frame in frames)
    expect(ada.locator("#report-error")).to_have_text("")
    expect(button).to_be_focused()
    # The report can be made again.
    button.click()
    expect(ada.locator("#report dl")).to_be_visible()


def test_note_can_be_posted_with_the_keyboard(ada):
    ada.get_by_label("New note").focus()
    ada.keyboard.type("Typed, not clicked")
    ada.keyboard.press("Tab")
    ada.keyboard.press("Enter")

    expect(note(ada, "Typed, not clicked")).to_have_count(1)
    assert ada.evaluate("document.activeElement.textContent") == "Post note"


def test_source_of_the_page_contains_no_token(ada):
    assert "wst_" not in ada.request.get(ada.url).text()
    assert "wst_" not in ada.content()


def test_board_fits_a_phone(ada):
    post_note(ada, "w" * 300)
    expect(note(ada, "www")).to_have_count(1)

    ada.set_viewport_size({"width": 390, "height": 844})

    assert ada.evaluate("document.documentElement.scrollWidth") <= 390


def test_signing_out_leads_to_the_login_page(site, ada, ben):
    sign_out(ben, tab=ben)

    expect(ben).to_have_url(f"{site.url}/login/")
    expect(ada.locator("#people .person")).to_have_count(1)
    ben.goto(site.url)
    expect(ben).to_have_url(f"{site.url}/login/?next=/")


def test_signing_out_ends_only_the_boards_of_that_browser(site, sign_in, ben):
    """The other tab hides the board and shows why. Another browser is not affected."""
    elsewhere = sign_in("ben")
    opened = note_new_sockets(elsewhere)
    post_note(ben, "For the shift's eyes")
    expect(note(elsewhere, "For the shift's eyes")).to_have_count(1)
    tab = new_tab(ben)
    expect_state(tab, "Live")

    sign_out(ben, tab)

    expect(tab).to_have_url(f"{site.url}/login/")
    expect_state(ben, "You were signed out")
    expect(ben.get_by_role("heading", name="You were signed out")).to_be_visible()
    expect(ben.get_by_text("You signed out in another tab")).to_be_visible()
    expect(note(ben, "For the shift's eyes")).to_be_hidden()
    expect(ben.get_by_role("button")).to_have_count(0)
    post_note(elsewhere, "Still signed in here")
    expect(note(elsewhere, "Still signed in here")).to_have_count(1)
    assert opened == elsewhere.problems == []
    ben.get_by_role("link", name="Sign in").click()
    expect(ben).to_have_url(f"{site.url}/login/")


def test_signing_out_everywhere_ends_the_boards_of_every_browser(site, sign_in, ada, ben):
    """The pages of other users are not affected."""
    elsewhere = sign_in("ben")
    opened = note_new_sockets(ada)
    post_note(ben, "For nobody who comes later")
    expect(note(elsewhere, "For nobody who comes later")).to_have_count(1)
    ben.get_by_role("link", name="Ben").click()
    expect(ben.get_by_text(re.compile(r"^As ben, in \d+ browsers"))).to_be_visible()

    ben.get_by_role("button", name="Sign out everywhere").click()

    expect(ben).to_have_url(f"{site.url}/login/")
    expect(ben.get_by_role("status")).to_have_text("You were signed out in all browsers.")
    expect_state(elsewhere, "You were signed out")
    expect(elsewhere.get_by_role("heading", name="You were signed out")).to_be_visible()
    expect(note(elsewhere, "For nobody who comes later")).to_be_hidden()
    elsewhere.goto(site.url)
    expect(elsewhere).to_have_url(f"{site.url}/login/?next=/")
    expect(ada.locator("#people .person")).to_have_count(1)
    assert opened == []
    sign_in("ben")


def test_board_is_hidden_after_another_user_has_signed_in(ben):
    """Ben signs out and Ada signs in, in another tab, before the board requests a token again."""
    tab = new_tab(ben)
    expect_state(tab, "Live")

    # Stop the clock of the board: on a slow machine the sign-in takes more than three seconds.
    ben.clock.install(time=0)
    ben.clock.pause_at(1000)
    sign_out(ben, tab)
    expect_state(ben, "Reconnecting")
    sign_in_on(tab, "ada")
    ben.clock.run_for(3000)

    expect_state(ben, "Somebody else signed in")
    expect(ben.locator("#board")).to_be_hidden()
    ben.get_by_role("link", name="Open their board").click()
    expect_state(ben, "Live")
    expect(ben.locator("#who")).to_contain_text("Ada")


def test_page_reconnects_after_staff_end_its_connection(sign_in, ada, ben):
    """It opens a new connection and loses nothing. The user's other page keeps its connection."""
    elsewhere = sign_in("ben")
    opened = note_new_sockets(elsewhere)
    ada.get_by_role("link", name="Live sockets").click()
    # The last two. The server may still list connections of earlier tests above them.
    button = ada.get_by_role("region", name="Ben").get_by_label("End socket").all()[-2]
    socket = button.get_attribute("aria-label").removeprefix("End ").capitalize()

    with ben.expect_websocket():
        button.click()

    expect(ada.get_by_text(f"{socket} was ended.")).to_be_visible()
    expect_state(ben, "Live")
    post_note(ben, "Back again")
    expect(note(ben, "Back again")).to_have_count(1)
    expect(note(elsewhere, "Back again")).to_have_count(1)
    assert opened == []


def test_page_of_live_sockets_follows_what_other_pages_do(site, ada, ben):
    """The list is right without a reload when a page reconnects, and when it closes."""
    ada.get_by_role("link", name="Live sockets").click()
    expect_state(ada, "Live")
    sockets = ada.get_by_role("region", name="Ben").get_by_label("End socket")
    before = {each.get_attribute("value") for each in sockets.all()}

    with ben.expect_websocket():
        ada.get_by_role("button", name="End all of Ben").click()
    expect(ada.get_by_text("All sockets of ben were ended.")).to_be_visible()
    loads = []
    ada.on("framenavigated", lambda frame: loads.append(frame))

    # Ben's page has reconnected with another connection, and then he leaves it.
    expect(sockets).to_have_count(1)
    assert sockets.first.get_attribute("value") not in before
    ben.goto(f"{site.url}/account/")
    expect(ada.get_by_role("region", name="Ben")).to_have_count(0)
    # The page's own connection is in the list too.
    expect(ada.get_by_role("region", name="Ada")).to_contain_text("/ws/sockets/wst_000")
    assert loads == []


def test_button_keeps_the_focus_when_the_list_changes(site, ada, ben):
    ada.get_by_role("link", name="Live sockets").click()
    button = ada.get_by_role("button", name="End all of Ada")
    expect_state(ada, "Live")
    expect(ada.get_by_role("region", name="Ben")).to_be_visible()
    button.focus()

    ben.goto(f"{site.url}/account/")

    expect(ada.get_by_role("region", name="Ben")).to_have_count(0)
    expect(button).to_be_focused()


def test_page_of_live_sockets_shows_nothing_after_its_user_is_no_longer_staff(site, ada):
    ada.get_by_role("link", name="Live sockets").click()
    expect_state(ada, "Live")
    staff = "UPDATE auth_user SET is_staff = ? WHERE username = 'ada'"

    site.sql(staff, False)
    try:
        expect(ada.get_by_text("Staff only")).to_be_visible()
        assert ada.get_by_role("button", name=re.compile("End")).count() == 0
    finally:
        site.sql(staff, True)
        # Chromium logs the 403 of the page as an error.
        ada.problems.clear()


def test_page_of_live_sockets_fits_a_phone(ada):
    tab = new_tab(ada, f"{ada.url}sockets/")
    tab.set_viewport_size({"width": 375, "height": 812})
    expect_state(tab, "Live")

    expect(tab.get_by_role("button", name="End all of Ada")).to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375


def open_in_admin(page, *links):
    """Follow ``links`` from the board through the admin. No page may violate its policy."""
    for link in ("Admin", *links):
        page.get_by_role("link", name=link, exact=True).first.click()
        assert page.evaluate("window.violations") == []


def act_on(page, row, action):
    """Select the row of a list that contains ``row``, and run ``action`` on it."""
    page.get_by_role("row", name=row).get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option(label=action)
    page.get_by_role("button", name=re.compile(r"^(Go|Run)$")).click()


def test_token_that_staff_have_revoked_is_refused(site, ada):
    visitor = Visitor(site).sign_in("ben")
    revoked, kept = (json.loads(visitor.ask_for_token().text)["token"] for _ in range(2))
    open_in_admin(ada, "WebSocket tokens")

    act_on(ada, digest_of(revoked)[:12], "Revoke the selected tokens")

    expect(ada.get_by_text("Revoked 1 token.")).to_be_visible()
    expect(ada.get_by_role("link", name=digest_of(kept)[:12])).to_be_visible()
    expect(ada.get_by_role("link", name=digest_of(revoked)[:12])).to_have_count(0)
    with visitor.open_board(revoked) as socket, pytest.raises(ConnectionClosed) as closed:
        socket.connection.recv(LIMIT)
    assert closed.value.rcvd.code == 4401
    with visitor.open_board(kept) as socket:
        assert "notes" in socket.ask("board")
    ada.get_by_role("link", name=digest_of(kept)[:12]).click()
    expect(ada.get_by_text("/ws/board", exact=True)).to_be_visible()
    expect(ada.get_by_role("button", name="Save")).to_have_count(0)


@pytest.mark.parametrize(
    ("link", "action"),
    [
        ("Users", "Disconnect: end all live WebSockets"),
        ("WebSocket tokens", "Disconnect the users of the selected tokens"),
    ],
)
def test_page_reconnects_after_the_admin_disconnects_its_user(site, ada, ben, link, action):
    """The connection ends with 4410. The user is still signed in, so the page reconnects."""
    site.sql("DELETE FROM channels_websocket_utils_websockettoken")
    ben.add_init_script(NOTE_CLOSE_CODES)
    ben.reload()
    expect_state(ben, "Live")
    open_in_admin(ada, link)

    with ben.expect_websocket():
        act_on(ada, re.compile(r"\bben\b"), action)

    expect(ada.get_by_text("All live WebSockets of 1 user end now")).to_be_visible()
    expect_state(ben, "Live")
    assert ben.evaluate("window.closeCodes") == [4410]
    post_note(ben, "Back from the admin")
    expect(note(ben, "Back from the admin").first).to_be_visible()
    ada.goto(f"{site.url}/admin/auth/user/2/history/")
    expect(ada.get_by_text("Ended all live WebSockets.").first).to_be_visible()


def test_page_reconnects_after_a_restart(site, sign_in):
    """With a new token, and with the note that was added meanwhile."""
    page = sign_in("ada")
    tokens = []
    page.on("websocket", lambda socket: tokens.append(re.search(r"wst_[\w-]+", socket.url)[0]))
    page.reload()
    expect_state(page, "Live")

    site.stop(kill=True)
    expect_state(page, "Reconnecting")
    expect(page.locator("#countdown")).to_have_text(re.compile(r"in \d+ s"))
    site.write_note("written meanwhile")
    site.start()

    expect_state(page, "Live")
    expect(note(page, "written meanwhile")).to_have_count(1)
    post_note(page, "and back")
    expect(note(page, "and back")).to_have_count(1)
    assert len(tokens) == len(set(tokens)) >= 2


def test_notes_posted_while_a_laptop_sleeps_appear_on_wake(site, ben, sign_in):
    """The page requests the messages after its position, and not all notes again."""
    laptop = sign_in("ada")
    sent = []
    laptop.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(frame)))
    post_note(ben, "Before the sleep")
    expect(note(laptop, "Before the sleep")).to_have_count(1)
    devtools = laptop.context.new_cdp_session(laptop)

    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    Visitor(site).sign_in("ada").post("/sockets/", user="ada")
    for number in range(3):
        post_note(ben, f"While you slept {number}")
        expect(note(ben, f"While you slept {number}")).to_have_count(1)
    devtools.send("Page.setWebLifecycleState", {"state": "active"})

    expect(note(laptop, "While you slept")).to_have_count(3)
    texts = laptop.locator("#notes .text").all_text_contents()[:4]
    assert texts == [*(f"While you slept {n}" for n in (2, 1, 0)), "Before the sleep"]
    messages = [json.loads(frame) for frame in sent]
    assert "board" not in [message["type"] for message in messages]
    (since,) = [
        each["since"]
        for message in messages
        for each in message.get("subscriptions", [])
        if each["topic"] == "board"
    ]
    assert since["offset"] > 0


def test_page_loads_all_notes_again_after_a_gap(site, sign_in):
    """The history that the page needs is not kept any more."""
    ben = sign_in("ben")
    post_note(ben, "Seen before the gap")
    expect(note(ben, "Seen before the gap")).to_have_count(1)

    site.stop(kill=True)
    expect_state(ben, "Reconnecting")
    site.write_note("Lost with the history")
    site.manage("shell", "--command", "from board.topics import *; BoardTopic().clear()")
    site.start()

    expect(note(ben, "Lost with the history")).to_have_count(1)
    post_note(ben, "After the gap")
    expect(note(ben, "After the gap")).to_have_count(1)


def test_activity_disappears_with_the_permission_and_comes_back(site, ada, ben):
    """Ada gives Ben the permission and takes it away, in the admin. His page keeps its socket."""
    opened = note_new_sockets(ben)
    activity = ben.get_by_role("region", name="Activity")
    expect(ada.get_by_role("region", name="Activity")).to_be_visible()
    expect(activity).to_have_count(0)

    for number in range(2):
        change_permission(site, ada, "from", "add")
        expect(activity).to_be_visible()
        post_note(ben, f"Fuse {number} replaced")
        expect(activity).to_contain_text(f"Ben wrote “Fuse {number} replaced”")

        change_permission(site, ada, "to", "remove")
        expect(activity).to_have_count(0)
        expect(ben.locator("#activity-list li")).to_have_count(0)
    assert opened == []


def change_permission(site, page, side, action):
    """Move the permission to publish announcements in the form of the user Ben."""
    page.goto(f"{site.url}/admin/auth/user/2/change/")
    choices = page.locator(f"#id_user_permissions_{side}")
    permission = choices.locator("option", has_text="Can publish an announcement")
    choices.select_option(value=permission.get_attribute("value"))
    page.locator(f"#id_user_permissions_{action}").click()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("was changed successfully")).to_be_visible()


def test_page_of_an_ended_session_shows_signed_out(site, sign_in):
    """The session ended while the server was stopped, so the page stops connecting."""
    page = sign_in("ben")
    site.sql("DELETE FROM board_session")
    site.stop(kill=True)
    site.start()

    expect_state(page, "You were signed out")
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()
    page.get_by_role("link", name="Sign in").click()
    expect(page.get_by_label("Password")).to_be_visible()


def test_wrong_password_shows_an_error(site, browser):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(site.url)
        page.get_by_label("Name").fill("ada")
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Sign in").click()

        expect(page.get_by_role("alert")).to_contain_text("do not match")
