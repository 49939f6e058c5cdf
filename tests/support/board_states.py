"""The pages of the sample site, in every state that a user can see."""

import contextlib
import json

from playwright.sync_api import expect

from .sample_site_fixtures import LIMIT, PASSWORDS, Visitor

__all__ = ["STATES", "Stage"]

# Author, age in minutes, whether it is done, and text.
NOTES = [
    ("ben", 405, True, "Delivery at gate 3 was two pallets short. The driver signed for it."),
    ("ada", 312, True, "Cold store 2 showed -14 °C. Door seal pressed back, -18 °C since 01:20."),
    (
        "ben",
        188,
        False,
        "Lift 2 stops between floors. Out of order until the technician comes at 06:00.",
    ),
    ("ada", 95, False, "The key of the plant room is with the porter, not on the board."),
    ("ben", 41, True, "Smoke detector in corridor B: dust, no fire. Reset, and cleaned."),
    ("ada", 6, False, "Pump 1 sounds rough again.\nPlease listen to it once an hour."),
]
# Who has done what, and the note, oldest first.
ACTIVITY = [("Ben", "wrote", 4), ("Ben", "finished", 4), ("Ada", "wrote", 5)]
PUBLISH_ACTIVITY = """
from board.topics import ActivityTopic
from django.utils import timezone
from django.utils.text import Truncator

topic = ActivityTopic()
topic.clear()
for name, action, text in {activity!r}:
    at = timezone.now().isoformat()
    short = Truncator(text).chars(60)
    topic.publish({{"name": name, "action": action, "text": short, "at": at}})
"""
ANNOUNCEMENT = "Fire drill at 03:00. Nobody has to leave the cold store."


class Stage:
    """The running sample site and a browser. All pages are closed when the block ends."""

    def __init__(self, site, browser, **options):
        self.site, self._browser = site, browser
        # Without animations, so that colours do not change while a test reads them.
        self._options = {"locale": "en-GB", "reduced_motion": "reduce", **options}
        self._visitors, self._stack = {}, contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()

    def visitor(self, username):
        """Return the session of a user. Each call returns the same one."""
        if username not in self._visitors:
            self._visitors[username] = Visitor(self.site).sign_in(username)
        return self._visitors[username]

    def open(self, username=None, path="/"):
        """Return a page at ``path`` in a new browser context, signed in if a user is named."""
        context = self._browser.new_context(**self._options)
        self._stack.callback(context.close)
        context.set_default_timeout(LIMIT * 1000)
        if username:
            cookies = self.visitor(username).cookies
            context.add_cookies(
                [{"name": each.name, "value": each.value, "url": self.site.url} for each in cookies]
            )
        page = context.new_page()
        page.goto(self.site.url + path)
        return page

    def board(self, username, path="/"):
        """Like ``open()``, and wait until the board is shown."""
        page = self.open(username, path)
        expect_state(page, "Live")
        expect(page.locator("#people .person").first).to_be_visible()
        return page

    def clear(self):
        """Delete everything from the board."""
        for table in ("note", "announcement", "presence"):
            self.site.sql(f"DELETE FROM board_{table}")

    def fill(self):
        """Replace the contents of the board by the notes of a shift."""
        self.clear()
        user_id = "(SELECT id FROM auth_user WHERE username = ?)"
        for author, minutes, is_done, text in NOTES:
            self.site.sql(
                "INSERT INTO board_note (text, author_id, created_at, done_at) VALUES "
                f"(?, {user_id}, datetime('now', ?), iif(?, datetime('now'), NULL))",
                text,
                author,
                f"-{minutes} minutes",
                is_done,
            )
        self.site.sql(
            "INSERT INTO board_announcement (text, author_id, created_at) "
            f"VALUES (?, {user_id}, datetime('now', '-80 minutes'))",
            ANNOUNCEMENT,
            "ada",
        )
        activity = [(name, action, NOTES[number][3]) for name, action, number in ACTIVITY]
        self.site.manage("shell", "--command", PUBLISH_ACTIVITY.format(activity=activity))


def expect_state(page, text):
    expect(page.locator("#state-text")).to_have_text(text, timeout=LIMIT * 1000)


def sign_in_on(page, username):
    """Fill in the form for signing in, and wait for the board."""
    _fill_in_login(page, username, PASSWORDS[username])
    expect_state(page, "Live")


def _fill_in_login(page, username, password):
    page.get_by_label("Name").fill(username)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def login(stage):
    return stage.open()


def login_failed(stage):
    page = stage.open()
    _fill_in_login(page, "ada", "wrong")
    expect(page.get_by_role("alert")).to_be_visible()
    return page


def empty_board(stage):
    stage.clear()
    page = stage.board("ben")
    expect(page.locator("#no-notes")).to_be_visible()
    return page


def full_board(stage):
    stage.fill()
    stage.board("ben")
    page = stage.board("ada")
    expect(page.locator("#people .person")).to_have_count(2)
    expect(page.locator("#notes .note")).to_have_count(len(NOTES))
    expect(page.locator("#activity-list li")).to_have_count(len(ACTIVITY))
    return page


def refused_note(stage):
    page = stage.board("ben")
    page.get_by_role("button", name="Post note").click()
    expect(page.locator("#note-error")).not_to_be_empty()
    page.get_by_label("Text for everyone").fill("Free coffee")
    page.get_by_role("button", name="Publish").click()
    expect(page.locator("#announcement-error")).not_to_be_empty()
    return page


def report_running(stage):
    stage.fill()
    page = stage.open("ada")
    page.route_web_socket("**/ws/board/*", _hold_after_nine_hours)
    page.reload()
    expect_state(page, "Live")
    page.get_by_role("button", name="Make the report").click()
    expect(page.locator("#report-hours")).to_contain_text("9 of 24")
    return page


def _hold_after_nine_hours(socket):
    server = socket.connect_to_server()

    def pass_on(message):
        if json.loads(message).get("hours", 0) <= 9:
            socket.send(message)

    server.on_message(pass_on)


def report_done(stage):
    page = full_board(stage)
    page.get_by_role("button", name="Make the report").click()
    expect(page.locator("#report dl")).to_be_visible(timeout=LIMIT * 1000)
    return page


def waiting(stage):
    """The connection is lost, the server answers 503, and the page shows a countdown."""
    page = full_board(stage)
    later = {"status": 503, "headers": {"Retry-After": "30"}}
    page.route("**/websocket/token/", lambda route: route.fulfill(**later))
    stage.visitor("ada").post("/sockets/", user="ada")
    expect_state(page, "Reconnecting")
    expect(page.locator("#countdown")).to_contain_text("in ")
    return page


def signed_out(stage):
    page = stage.board("ben")
    stage.site.sql("DELETE FROM board_session WHERE session_key = ?", _session_key(page))
    del stage._visitors["ben"]
    stage.visitor("ada").post("/sockets/", user="ben")
    expect_state(page, "You were signed out")
    return page


def _session_key(page):
    return next(each["value"] for each in page.context.cookies() if each["name"] == "sessionid")


def user_changed(stage):
    """The page belongs to Ben. Then Ada has signed in in another tab."""
    page = stage.board("ben")
    (cookie,) = (each for each in stage.visitor("ada").cookies if each.name == "sessionid")
    page.context.add_cookies([{"name": cookie.name, "value": cookie.value, "url": stage.site.url}])
    stage.visitor("ada").post("/sockets/", user="ben")
    expect_state(page, "Somebody else signed in")
    return page


def refused_page(stage):
    return stage.open("ben", "/sockets/")


def live_sockets(stage):
    stage.board("ben")
    stage.board("ada")
    page = stage.open("ada", "/sockets/")
    expect_state(page, "Live")
    expect(page.get_by_role("region", name="Ben")).to_be_visible()
    return page


def ended_socket(stage):
    page = live_sockets(stage)
    page.get_by_role("button", name="End all of Ben").click()
    expect(page.get_by_text("All sockets of ben were ended.")).to_be_visible()
    # Ben's page reconnects, so the list shows its new connection.
    expect(page.get_by_role("region", name="Ben")).to_be_visible(timeout=LIMIT * 1000)
    return page


def no_live_sockets(stage):
    """No socket is open, because the token endpoint answers 503 to this page too."""
    for username in PASSWORDS:
        stage.visitor("ada").post("/sockets/", user=username)
    page = stage.open("ada", "/account/")
    later = {"status": 503, "headers": {"Retry-After": "30"}}
    page.route("**/websocket/token/", lambda route: route.fulfill(**later))
    page.goto(f"{stage.site.url}/sockets/")
    expect_state(page, "Reconnecting")
    expect(page.get_by_text("No sockets are open in this process.")).to_be_visible()
    return page


def account(stage):
    stage.site.sql("DELETE FROM board_session")
    Visitor(stage.site).sign_in("ben")
    return stage.open("ben", "/account/")


def signed_out_everywhere(stage):
    page = Stage.open(stage, "ben", "/account/")
    page.get_by_role("button", name="Sign out everywhere").click()
    del stage._visitors["ben"]
    expect(page.get_by_role("status")).to_be_visible()
    return page


STATES = {
    state.__name__: state
    for state in (
        login,
        login_failed,
        empty_board,
        full_board,
        refused_note,
        report_running,
        report_done,
        waiting,
        signed_out,
        user_changed,
        refused_page,
        live_sockets,
        ended_socket,
        no_live_sockets,
        account,
        signed_out_everywhere,
    )
}
