"""The sample site over HTTP and WebSocket, without a browser."""

import contextlib
import json
import re

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ..support.sample_site_fixtures import Site, Visitor, running_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("sample_site")) as site:
        yield site


@pytest.fixture(scope="module")
def visitors(site):
    return {name: Visitor(site).sign_in(name) for name in ("ada", "ben")}


@pytest.fixture(autouse=True)
def no_presence(site):
    """Delete the presence of earlier tests, whose ends the server may not have noticed yet."""
    site.sql("DELETE FROM board_presence")


@pytest.fixture
def ada(visitors):
    with visitors["ada"].open_board() as socket:
        socket.next_push("people")
        socket.subscribe("board")
        yield socket


@pytest.fixture
def ben(visitors):
    with visitors["ben"].open_board() as socket:
        socket.next_push("people")
        socket.subscribe("board")
        yield socket


def names(message):
    return [person["name"] for person in message["people"]]


def socket_ids(staff):
    """Return the ids on the page of live sockets, including connections that have just ended."""
    return set(re.findall(r'name="socket" value="(\d+)"', staff.get("/sockets/").text))


@contextlib.contextmanager
def new_socket(staff, visitor):
    """Yield a connection of ``visitor`` to the board, and its id on the page of live sockets."""
    before = socket_ids(staff)
    with visitor.open_board() as socket:
        socket.next_push("people")
        (socket_id,) = socket_ids(staff) - before
        yield socket, socket_id


def close_code(socket):
    """Wait until the server closes a connection, and return the code."""
    with pytest.raises(ConnectionClosed) as closed:
        socket.next_push("no such key")
    return closed.value.rcvd.code


def is_live(socket):
    return "notes" in socket.ask("board")


def test_checks_and_migrations_are_complete(site):
    site.manage("check", "--fail-level", "WARNING")
    site.manage("makemigrations", "--check", "--dry-run")


def test_demo_users_can_be_created_again(site):
    """The command lists the users, and a second run changes nothing."""
    before = site.sql("SELECT id, username, password, is_staff FROM auth_user")

    printed = site.manage("create_demo_users")

    assert site.sql("SELECT id, username, password, is_staff FROM auth_user") == before
    assert "ada / ada-demo-1  (staff: " in printed
    assert "ben / ben-demo-1" in printed


def test_unauthenticated_client_is_redirected_to_the_login_page(site):
    page = Visitor(site).get("/")

    assert page.url == f"{site.url}/login/?next=/"
    assert "ada-demo-1" in page.text


def test_unauthenticated_client_gets_no_token(site):
    assert Visitor(site).ask_for_token().status == 401


@pytest.mark.parametrize(
    "path",
    ["/", "/sockets/", "/admin/", "/admin/channels_websocket_utils/websockettoken/"],
)
def test_pages_allow_no_inline_script(visitors, path):
    """The pages have a strict policy and comply with it. Their source contains no token."""
    page = visitors["ada"].get(path)

    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page.text)
    assert not re.search(r"wst_(?!0+<)", page.text)
    assert "no-store" in page.headers["Cache-Control"]


def test_page_of_another_site_cannot_open_a_connection(visitors):
    socket = visitors["ada"].open_board(origin="https://elsewhere.example")

    with pytest.raises(InvalidStatus) as refused, socket:
        pass

    assert refused.value.response.status_code == 403


def test_token_of_ada_is_refused_for_ben(visitors):
    token = re.search(r"wst_[\w-]+", visitors["ada"].ask_for_token().text)[0]

    with visitors["ben"].open_board(token) as socket, pytest.raises(ConnectionClosed) as closed:
        socket.connection.recv(10)

    assert closed.value.rcvd.code == 4401


def test_note_reaches_everyone(ada, ben):
    reply = ada.ask("post_note", text="  Gate 4 <b>sticks</b>  ")

    push = ben.next_push("websocket.topic")["data"]["note"]
    assert push["text"] == reply["text"] == "Gate 4 <b>sticks</b>"
    assert push["author"] == {"username": "ada", "name": "Ada"}
    assert ben.ask("board")["notes"][0]["id"] == reply["id"]


@pytest.mark.parametrize("text", ["", " \n ", None, 5, ["a"], "x" * 501, "nul \0"])
def test_bad_note_is_refused(ada, text):
    before = len(ada.ask("board")["notes"])

    error = ada.ask("post_note", text=text)["error"]

    assert error["code"] == "invalid"
    assert error["message"]
    assert len(ada.ask("board")["notes"]) == before


def test_longest_note_is_accepted(ada):
    """Characters are counted, not bytes."""
    assert ada.ask("post_note", text="ü" * 500)["text"] == "ü" * 500


def test_refusal_of_a_long_note_contains_its_length(ada):
    message = ada.ask("post_note", text="x" * 512)["error"]["message"]

    assert message == "512 characters are too many: at most 500."


def test_note_is_marked_done_for_everyone(ada, ben):
    note = ada.ask("post_note", text="Lamp in hall 2")

    assert ben.ask("mark_done", id=note["id"], is_done=True)["is_done"]
    ada.next_push("websocket.topic", lambda push: push["data"]["note"]["is_done"])
    assert not ben.ask("mark_done", id=note["id"], is_done=False)["is_done"]


@pytest.mark.parametrize("note_id", [None, True, "1", 10**30, -1, []])
def test_note_that_does_not_exist_cannot_be_done(ada, note_id):
    assert ada.ask("mark_done", id=note_id, is_done=True)["error"]["code"] == "invalid"


def test_announcement_needs_the_permission(site, ada, ben):
    assert ben.ask("publish_announcement", text="Hi")["error"]["code"] == "permission_denied"
    assert site.sql("SELECT count(*) FROM board_announcement") == [(0,)]

    ada.ask("publish_announcement", text="Fire drill at 03:00")

    push = ben.next_push("websocket.topic")["data"]["announcement"]
    assert push["text"] == "Fire drill at 03:00"
    assert ben.ask("board")["announcement"]["text"] == "Fire drill at 03:00"


def test_topic_of_the_activity_needs_the_permission(ada, ben):
    assert ben.subscribe("activity")["error"]["code"] == "permission_denied"
    assert ben.ask("activity")["error"]["code"] == "permission_denied"
    assert "epoch" in ada.subscribe("activity")

    note = ben.ask("post_note", text="Fuse 3")
    ben.ask("mark_done", id=note["id"], is_done=True)

    entries = [entry for entry in ada.ask("activity")["entries"] if entry["text"] == "Fuse 3"]
    assert [(each["name"], each["action"]) for each in entries] == [
        ("Ben", "wrote"),
        ("Ben", "finished"),
    ]


def test_activity_shortens_a_long_note(ada):
    ada.ask("post_note", text="Fuse " * 40)

    text = ada.ask("activity")["entries"][-1]["text"]
    assert text.startswith("Fuse Fuse")
    assert text.endswith("…")
    assert len(text) == 60


def test_rights_of_another_user_cannot_be_followed(site, ada, ben):
    ((ben_id,),) = site.sql("SELECT id FROM auth_user WHERE username = 'ben'")

    assert ada.subscribe(f"rights/{ben_id}")["error"]["code"] == "permission_denied"
    assert "epoch" in ben.subscribe(f"rights/{ben_id}")


def test_removed_permission_denies_the_next_call(site, ada):
    rows = site.sql("SELECT user_id, permission_id FROM auth_user_user_permissions")
    site.sql("DELETE FROM auth_user_user_permissions")

    denied = ada.ask("publish_announcement", text="Hi")
    for row in rows:
        site.sql(
            "INSERT INTO auth_user_user_permissions (user_id, permission_id) VALUES (?, ?)", *row
        )

    assert denied["error"]["code"] == "permission_denied"
    assert "error" not in ada.ask("publish_announcement", text="Fire drill is over")


@pytest.mark.parametrize(
    "name", ["board_people", "board.people", "push", "write", "send_people", "close"]
)
def test_methods_without_auto_route_cannot_be_called(ada, name):
    assert ada.ask(name, payload={"text": "forged"})["error"]["code"] == "unknown_type"


def test_report_counts_the_notes(site, ada, ben):
    site.sql("DELETE FROM board_note")
    first = ada.ask("post_note", text="one")
    ben.ask("post_note", text="two")
    ada.ask("post_note", text="three")
    ada.ask("mark_done", id=first["id"], is_done=True)
    # The report does not contain old notes.
    old = ada.ask("post_note", text="old")
    site.sql("UPDATE board_note SET created_at = '2020-01-01' WHERE id = ?", old["id"])

    *progress, last = ben.ask_all("handover_report")
    report = last["report"]

    assert [(part["hours"], part["of"]) for part in progress] == [(n, 24) for n in range(1, 25)]
    assert progress[-1]["count"] == 3
    assert (report["count"], report["open"]) == (3, 2)
    assert report["authors"] == [{"name": "Ada", "count": 2}, {"name": "Ben", "count": 1}]
    assert report["newest"]["text"] == "three"
    assert report["oldest_open"]["text"] == "two"
    assert report["busiest_hour"]["count"] in (1, 2, 3)


def test_report_of_no_notes(site, ada):
    site.sql("DELETE FROM board_note")

    report = ada.ask_all("handover_report")[-1]["report"]

    assert (report["count"], report["authors"], report["busiest_hour"]) == (0, [], None)


def test_two_tabs_of_a_user_are_one_presence(visitors, ada):
    """A user is present until the last tab is closed."""
    with visitors["ben"].open_board() as first:
        ada.next_push("people", lambda frame: names(frame) == ["Ada", "Ben"])
        with visitors["ben"].open_board() as second:
            assert names(second.ask("still_here")) == ["Ada", "Ben"]
        # One push when the first tab opens, one when the second opens, one when it closes.
        assert [names(first.next_push("people")) for _ in range(3)] == [["Ada", "Ben"]] * 3
        assert names(ada.ask("still_here")) == ["Ada", "Ben"]
        ada.pushes.clear()

    ada.next_push("people", lambda frame: names(frame) == ["Ada"])


def test_user_leaves_when_two_tabs_are_closed_together(visitors, ada):
    """A push to a connection that has just ended does not renew the presence of the other."""
    with visitors["ben"].open_board(), visitors["ben"].open_board() as second:
        assert names(second.ask("still_here")) == ["Ada", "Ben"]
        ada.next_push("people", lambda frame: names(frame) == ["Ada", "Ben"])
        ada.pushes.clear()

    ada.next_push("people", lambda frame: names(frame) == ["Ada"])


def test_user_leaves_if_the_page_disconnects_before_its_answer(visitors, ada):
    with visitors["ben"].open_board() as socket:
        ada.next_push("people", lambda frame: names(frame) == ["Ada", "Ben"])
        socket.connection.send('{"type": "handover_report", "reply_key": "k"}')

    ada.next_push("people", lambda frame: names(frame) == ["Ada"])


def test_idle_page_is_absent_until_it_sends_a_message(site, ada, ben):
    site.sql("UPDATE board_presence SET seen_at = '2020-01-01' WHERE user_id = 2")

    assert names(ada.ask("still_here")) == ["Ada"]
    assert names(ben.ask("still_here")) == ["Ada", "Ben"]


def test_presence_is_correct_with_a_second_process(site, ada, tmp_path):
    """The processes share the table. Users of a killed process stay only for a short time."""
    second = Site(site.database, tmp_path / "log.txt")
    second.start()
    try:
        with Visitor(second).sign_in("ben").open_board() as socket:
            assert names(socket.next_push("people")) == ["Ada", "Ben"]
            assert names(ada.ask("still_here")) == ["Ada", "Ben"]
            second.stop(kill=True)
    finally:
        second.stop()

    assert names(ada.ask("still_here")) == ["Ada", "Ben"]
    site.sql(
        "UPDATE board_presence SET seen_at = datetime(seen_at, '-76 seconds') WHERE user_id = 2"
    )
    assert names(ada.ask("still_here")) == ["Ada"]


def test_user_who_signs_out_is_absent(site, ada):
    visitor = Visitor(site).sign_in("ben")
    with visitor.open_board():
        ada.next_push("people", lambda frame: names(frame) == ["Ada", "Ben"])

    assert visitor.post("/logout/").url == f"{site.url}/login/"

    assert visitor.ask_for_token().status == 401
    ada.next_push("people", lambda frame: names(frame) == ["Ada"])


def test_signing_out_needs_a_post(visitors):
    assert visitors["ada"].get("/logout/").status == 405


def test_staff_see_the_live_sockets(site, visitors):
    token = json.loads(visitors["ben"].ask_for_token().text)["token"]
    with visitors["ben"].open_board(token) as socket:
        socket.next_push("people")
        text = visitors["ada"].get("/sockets/").text

    assert '">Ben</h2>' in text
    assert "/ws/board/wst_000" in text
    assert token.removeprefix("wst_") not in text


def test_page_of_live_sockets_is_for_staff(site, visitors):
    with new_socket(visitors["ada"], visitors["ada"]) as (socket, socket_id):
        seen = visitors["ben"].get("/sockets/")
        tried = [
            visitors["ben"].post("/sockets/", **target)
            for target in ({"socket": socket_id}, {"user": "ada"})
        ]

        assert [page.status for page in (seen, *tried)] == [403, 403, 403]
        assert "Staff only" in seen.text
        assert "/ws/board/" not in seen.text
        assert is_live(socket)
    assert 'href="/sockets/"' not in visitors["ben"].get("/").text
    assert 'href="/sockets/"' in visitors["ada"].get("/").text
    assert Visitor(site).get("/sockets/").url == f"{site.url}/login/?next=/sockets/"


def test_list_of_live_sockets_is_sent_to_staff_only_and_after_each_change(visitors):
    with visitors["ada"].open_board(path="/ws/sockets/") as socket:
        before = socket.ask("watch_sockets")
        with visitors["ben"].open_board():
            after = socket.next_push(before["key"], lambda part: ">Ben</h2>" in part["html"])

    assert ">Ben</h2>" not in before["html"]
    assert "wst_000" in after["html"]
    with visitors["ben"].open_board(path="/ws/sockets/") as refused:
        assert close_code(refused) == 4403


def test_admin_is_for_staff(visitors):
    assert visitors["ben"].get("/admin/").url.endswith("/admin/login/?next=/admin/")
    assert 'href="/admin/"' not in visitors["ben"].get("/").text
    assert 'href="/admin/"' in visitors["ada"].get("/").text


def test_page_of_another_site_cannot_end_a_connection(visitors):
    with new_socket(visitors["ada"], visitors["ben"]) as (socket, socket_id):
        assert visitors["ada"].get("/sockets/", f"socket={socket_id}".encode()).status == 403
        assert is_live(socket)


def test_staff_end_exactly_one_connection(visitors, ada):
    """The user is still signed in and can connect again."""
    with (
        new_socket(visitors["ada"], visitors["ben"]) as (first, first_id),
        new_socket(visitors["ada"], visitors["ben"]) as (second, second_id),
    ):
        page = visitors["ada"].post("/sockets/", socket=first_id)

        assert close_code(first) == 4410
        assert f"Socket {first_id} was ended." in page.text
        assert f'value="{first_id}"' not in page.text
        assert f'value="{second_id}"' in page.text
        assert is_live(second)
        assert is_live(ada)
    with visitors["ben"].open_board() as socket:
        assert is_live(socket)


def test_ending_a_closed_connection_shows_a_message(visitors, ada):
    with new_socket(visitors["ada"], visitors["ben"]) as (socket, socket_id):
        visitors["ada"].post("/sockets/", socket=socket_id)
        close_code(socket)

    for gone in (socket_id, "no number"):
        page = visitors["ada"].post("/sockets/", socket=gone)
        assert f"Socket {gone} had already gone." in page.text
    assert is_live(ada)


def test_staff_end_all_connections_of_a_user(visitors, ada):
    with visitors["ben"].open_board() as first, visitors["ben"].open_board() as second:
        for socket in (first, second):
            socket.next_push("people")

        page = visitors["ada"].post("/sockets/", user="ben")

        assert [close_code(socket) for socket in (first, second)] == [4410, 4410]
        assert "All sockets of ben were ended." in page.text
        assert '">Ben</h2>' not in page.text
        assert is_live(ada)
    page = visitors["ada"].post("/sockets/", user="nobody")
    assert "There is no such user." in page.text


def test_sign_out_ends_only_the_connections_of_that_browser(site, visitors, ben):
    visitor = Visitor(site).sign_in("ben")
    with visitor.open_board() as socket:
        socket.next_push("people")

        visitor.post("/logout/")

        assert close_code(socket) == 4410
        assert is_live(ben)


def test_sign_out_everywhere_ends_every_session_and_token_of_that_user(site, ada):
    here, there = Visitor(site).sign_in("ben"), Visitor(site).sign_in("ben")
    token = json.loads(there.ask_for_token().text)["token"]
    with here.open_board() as first, there.open_board() as second:
        page = here.post("/account/sign-out/")

        assert [close_code(socket) for socket in (first, second)] == [4410, 4410]
    assert page.url == f"{site.url}/login/"
    assert "You were signed out in all browsers." in page.text
    assert [visitor.get("/").url for visitor in (here, there)] == [f"{site.url}/login/?next=/"] * 2
    with Visitor(site).sign_in("ben").open_board(token) as socket:
        assert close_code(socket) == 4401
    assert is_live(ada)


def test_sign_out_everywhere_needs_a_post_from_this_site(site):
    visitor = Visitor(site).sign_in("ben")

    assert visitor.get("/account/sign-out/").status == 405
    assert visitor.get("/account/sign-out/", b"").status == 403
    assert visitor.get("/account/").url == f"{site.url}/account/"


def test_log_of_the_server_has_no_errors(site):
    """This test is the last one of the file, so the log contains all tests above."""
    problems = r"Exception inside .*|Internal Server Error.*|Error \w+ in a message.*|Traceback.*"

    assert re.findall(problems, site.log.read_text()) == []
