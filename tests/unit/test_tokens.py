import io
import logging
import math
import re
import secrets
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.backends.db import SessionStore
from django.core import serializers
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, connections, models, router, transaction
from django.test.utils import CaptureQueriesContext, isolate_apps, modify_settings
from django.views.debug import ExceptionReporter

from channels_websocket_utils.compat import key_of_user
from channels_websocket_utils.models import WebSocketToken
from channels_websocket_utils.stores.database import DatabaseTokenStore
from channels_websocket_utils.tokens import clock as clock_module
from channels_websocket_utils.tokens import digests, issuing, redeeming, shape
from channels_websocket_utils.tokens.digests import digest_of
from channels_websocket_utils.tokens.queries import compiled_for

from ..support.secret_servers import seen

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
MICROSECOND = timedelta(microseconds=1)
TOLERANCE = timedelta(seconds=5)


@pytest.fixture
def clock(monkeypatch, settings):
    """The clock of the package, which a test can set."""

    class Clock:
        present = NOON

        def __call__(self):
            return self.present if settings.USE_TZ else self.present.replace(tzinfo=None)

    clock = Clock()
    monkeypatch.setattr(clock_module, "now", clock)
    return clock


def refusal(token, user, session_digest=None, path="/"):
    row = redeeming.find(digest_of(token))
    return redeeming.why_refused(row, user_id=user.pk, session_digest=session_digest, path=path)


def test_token_has_the_documented_shape_and_is_never_the_same(user):
    issued = {issuing.issue(user) for _ in range(5)}

    assert len(issued) == 5
    assert all(len(token) == 47 and token.startswith("wst_") for token in issued)


def test_token_matches_the_pattern_of_most_routes(user):
    """A URL-safe base64 text, the control, contains ``-`` in half of the cases."""
    naive = [secrets.token_urlsafe(32) for _ in range(100)]

    secrets_issued = [issuing.new_secret() for _ in range(100)]

    assert not all(re.fullmatch(r"\w+", text, re.ASCII) for text in naive)
    assert all(re.fullmatch(r"\w{43}", text, re.ASCII) for text in secrets_issued)
    assert re.fullmatch(r"wst_\w{43}", issuing.issue(user), re.ASCII)


def test_token_has_at_least_256_bits():
    """Each place of a token can be any character."""
    secrets_issued = [issuing.new_secret() for _ in range(2000)]

    assert len(shape.SECRET_ALPHABET) == len(set(shape.SECRET_ALPHABET)) == 63
    assert set("".join(secrets_issued)) == set(shape.SECRET_ALPHABET)
    assert all({secret[place] for secret in secrets_issued} > set("aZ0_") for place in range(43))
    assert math.log2(len(shape.SECRET_ALPHABET) ** shape.SECRET_LENGTH) >= 256


def test_token_of_an_earlier_version_is_still_valid_and_masked(user, monkeypatch):
    old = "-_" * 21 + "-"
    monkeypatch.setattr(issuing, "new_secret", lambda: old)

    token = issuing.issue(user)

    assert shape.is_token(token)
    assert shape.mask(f"/ws/{token}/") == f"/ws/wst_{'0' * 43}/"
    assert refusal(token, user) is None


def test_database_and_dumpdata_and_repr_hold_no_token(user, caplog):
    caplog.set_level(logging.DEBUG)
    token = issuing.issue(user, path="/ws/", session="a" * 32)
    row = redeeming.find(digest_of(token))
    dump = io.StringIO()

    call_command("dumpdata", stdout=dump)

    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM channels_websocket_utils_websockettoken")
        stored = repr(cursor.fetchall())
    model = WebSocketToken.objects.get(pk=row.digest)
    serialized = serializers.serialize("json", [model])
    everything = f"{dump.getvalue()}{stored}{row}{model!r}{vars(model)}{serialized}{caplog.text}"
    assert row.digest in stored
    assert token not in everything
    assert token[4:] not in everything
    assert "a" * 32 not in everything


def test_token_is_redeemed_once(user):
    row = redeeming.find(digest_of(issuing.issue(user)))

    assert redeeming.redeem(row)
    assert not redeeming.redeem(row)
    assert redeeming.why_refused(
        redeeming.find(row.digest), user_id=user.pk, session_digest=None, path="/"
    ) == ("redeemed")


@pytest.fixture(params=[True, False])
def use_tz(request, settings, transactional_db):
    """The setting, which a site never changes: on MariaDB a compiled query depends on it."""
    compiled_for(connections["default"]).clear()
    settings.USE_TZ = request.param
    yield request.param
    compiled_for(connections["default"]).clear()


@pytest.mark.parametrize(
    ("offset", "reason"),
    [
        (-TOLERANCE - MICROSECOND, "expired"),
        (-TOLERANCE, None),
        (-MICROSECOND, None),
        (timedelta(0), None),
        (timedelta(seconds=60) - MICROSECOND, None),
        (timedelta(seconds=60), "expired"),
        (timedelta(seconds=60) + TOLERANCE - MICROSECOND, "expired"),
        (timedelta(days=-400), "expired"),
    ],
)
def test_token_is_valid_from_its_creation_until_just_before_it_expires(
    user, clock, use_tz, offset, reason
):
    token = issuing.issue(user)

    clock.present = NOON + offset

    assert refusal(token, user) == reason
    state = "unused" if reason is None else "expired"
    assert redeeming.state_of(WebSocketToken.objects.get()) == state
    assert WebSocketToken.objects.filter(redeeming.in_state(state)).exists()


def test_token_of_a_machine_whose_clock_is_ahead_is_valid_at_once(user, clock):
    """The naive rule refuses it until the clock of this machine has reached its creation."""
    clock.present = NOON + timedelta(seconds=0.1)
    token = issuing.issue(user)

    clock.present = NOON

    assert refusal(token, user) is None
    row = WebSocketToken.objects.get()
    assert not row.created_at <= NOON
    assert row.expires_at - row.created_at == timedelta(seconds=60)


@pytest.mark.parametrize("use_tz", [True, False])
def test_clock_is_utc_in_every_time_zone(settings, use_tz):
    """With local time, the hour that is repeated in autumn would make its tokens valid again."""
    settings.USE_TZ = use_tz
    settings.TIME_ZONE = "Pacific/Auckland"

    present = clock_module.now().replace(tzinfo=timezone.utc)

    assert abs(present - datetime.now(timezone.utc)) < timedelta(minutes=1)


def test_lifetime_follows_the_setting(user, clock, settings):
    settings.WEBSOCKET_UTILS = {"TOKEN_MAX_AGE": 0.5}
    token = issuing.issue(user)

    clock.present = NOON + timedelta(seconds=0.5)

    assert refusal(token, user) == "expired"


def test_each_refusal_has_its_reason(user, other, clock):
    bound = issuing.issue(user, path="/ws/board/", session="s" * 32)

    here = {"session_digest": digest_of("s" * 32), "path": "/ws/board"}
    assert refusal(bound, user, **here) is None
    assert refusal(bound, other, **here) == "wrong_user"
    assert refusal(bound, user, digest_of("t" * 32), "/ws/board") == "wrong_session"
    assert refusal(bound, user, "", "/ws/board") == "wrong_session"
    assert refusal(bound, user, digest_of("s" * 32), "/ws/other") == "wrong_path"
    assert refusal("wst_" + "x" * 43, user) == "unknown"


def test_issuing_deletes_only_the_users_own_expired_rows(user, other, clock):
    issuing.issue(user)
    issuing.issue(other)

    clock.present += timedelta(seconds=60)
    issuing.issue(user)

    assert WebSocketToken.objects.filter(user=user).count() == 1
    assert WebSocketToken.objects.filter(user=other).count() == 1


def test_only_the_newest_tokens_of_a_user_are_kept(user, other, clock, settings):
    settings.WEBSOCKET_UTILS = {"MAX_TOKENS_PER_USER": 3}
    kept = issuing.issue(other)
    issued = []
    for _ in range(10):
        clock.present += MICROSECOND
        issued.append(issuing.issue(user))

    assert [refusal(token, user) for token in issued] == ["unknown"] * 7 + [None] * 3
    assert refusal(kept, other) is None


def test_redeemed_tokens_do_not_count_for_the_limit(user, clock, settings):
    settings.WEBSOCKET_UTILS = {"MAX_TOKENS_PER_USER": 1}
    redeeming.redeem(redeeming.find(digest_of(issuing.issue(user))))

    token = issuing.issue(user)

    assert refusal(token, user) is None
    assert WebSocketToken.objects.count() == 2


def test_deciding_update_names_the_tokens_own_columns_only(user):
    row = redeeming.find(digest_of(issuing.issue(user)), with_user=True)

    with CaptureQueriesContext(
        connection,
    ) as queries:
        redeeming.redeem(row)

    (update,) = [query["sql"] for query in queries]
    assert update.startswith("UPDATE")
    assert "SELECT" not in update
    assert "JOIN" not in update


def test_reads_and_writes_go_to_the_write_alias(user, monkeypatch):
    """A replica that lags behind would accept a redeemed token."""

    class Replicas:
        def db_for_read(self, model, **hints):
            return "replica"

        def db_for_write(self, model, **hints):
            return "default"

        def allow_relation(self, *args, **hints):
            return True

    row_digest = digest_of(issuing.issue(user))
    monkeypatch.setattr(router, "routers", [Replicas()])
    with pytest.raises(Exception, match="replica"):
        WebSocketToken.objects.filter(digest=row_digest).exists()

    row = DatabaseTokenStore().get(row_digest, with_user=True)

    assert row.user.get_username() == "ada"
    assert DatabaseTokenStore().redeem(row, clock_module.now())
    issuing.issue(user)


@pytest.mark.django_db
def test_token_of_an_anonymous_user_never_validates(django_user_model):
    unsaved = django_user_model(username="new")

    for anonymous in (AnonymousUser(), unsaved):
        token = issuing.issue(anonymous)

        assert len(token) == 47
        assert redeeming.find(digest_of(token)) is None


def test_user_who_is_not_in_the_database_gets_no_row(user, django_user_model):
    """A primary key does not prove that there is a row: a UUID exists before and after it."""
    unsaved = django_user_model(pk=user.pk + 1, username="new")
    deleted = django_user_model.objects.get(pk=user.pk)
    user.delete()

    for missing in (unsaved, deleted):
        token = issuing.issue(missing)

        assert redeeming.find(digest_of(token)) is None
    with transaction.atomic():
        # No row without its user is checked only at the end of the transaction of the request.
        issuing.issue(unsaved)
        assert not WebSocketToken.objects.exists()


@pytest.mark.parametrize("given", [None, "ada", 5, object()])
def test_object_that_is_not_a_user_is_named_in_the_error(given):
    with pytest.raises(TypeError, match=type(given).__name__):
        issuing.issue(given)


@isolate_apps("tests")
def test_token_of_a_child_model_with_its_own_key_is_the_parents(user, other):
    class Child(User):
        number = models.AutoField(primary_key=True)
        parent = models.OneToOneField(User, models.CASCADE, parent_link=True)

        class Meta:
            app_label = "tests"

    child = Child.from_db("default", ["id", "number", "parent_id"], [user.pk, other.pk, user.pk])
    child.password = user.password

    token = issuing.issue(child)

    assert child.pk == other.pk
    assert key_of_user(child) == user.pk
    assert refusal(token, user) is None
    assert refusal(token, other) == "wrong_user"


def test_user_of_another_class_is_named_in_the_error():
    class TokenUser:
        is_authenticated = True
        pk = 1

    with pytest.raises(TypeError, match="not to TokenUser"):
        issuing.issue(TokenUser())


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (5, TypeError),
        ("wss://x/ws/", ValueError),
        ("/ws/?a=1", ValueError),
        ("/ws/wst_" + "x" * 20, ValueError),
        ("/a\0", ValueError),
        ("/" + "x" * 2048, ValueError),
    ],
)
def test_invalid_path_is_named_in_the_error(user, path, error):
    with pytest.raises(error, match="path"):
        issuing.issue(user, path=path)
    assert not WebSocketToken.objects.exists()


@pytest.mark.parametrize("name", ["C#", "what?", "100%", "a b", "räum 📢", "a://b"])
def test_name_in_a_path_is_bound_with_and_without_percent_escapes(user, name):
    for form in (name, quote(name, safe="")):
        issuing.issue(user, path=f"/ws/{form}/")

    assert {row.path for row in WebSocketToken.objects.all()} == {f"/ws/{name}"}


@pytest.mark.parametrize(
    ("path", "bound"), [("%2541", "%41"), ("%252541", "%2541"), ("a%2F", "a/")]
)
def test_path_is_unescaped_once(user, path, bound):
    issuing.issue(user, path=f"/ws/{path}/")

    assert WebSocketToken.objects.get().path == f"/ws/{bound}"


def test_wrong_path_is_logged_with_both_paths(user, caplog):
    token = issuing.issue(user, path="/api/ws/")

    assert refusal(token, user, digest_of("s" * 32), "/ws") == "wrong_path"

    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "'/api/ws' was refused on the path '/ws'" in record.getMessage()
    assert "tokenPath" in record.getMessage()
    assert not seen([token[4:]], record.getMessage())


def test_invalid_session_is_named_in_the_error(user):
    with pytest.raises(TypeError, match="SessionStore"):
        issuing.issue(user, session=5)
    with pytest.raises(ValueError, match="no key yet"):
        issuing.issue(user, session=SessionStore())
    assert not WebSocketToken.objects.exists()


def test_token_is_not_bound_to_a_session_whose_key_changes_at_each_save(user, settings):
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"

    assert digests.session_digest("a.signed.key") == ""


def test_store_that_cannot_be_imported_is_named_in_the_error(user, settings):
    settings.WEBSOCKET_UTILS = {"TOKEN_STORE": "nowhere.Store"}

    with pytest.raises(ImproperlyConfigured, match=r"TOKEN_STORE.*nowhere\.Store"):
        issuing.issue(user)


def test_error_for_a_missing_app_names_the_remedy(user):
    without = modify_settings(INSTALLED_APPS={"remove": "channels_websocket_utils"})

    with without, pytest.raises(ImproperlyConfigured, match=r"not in INSTALLED_APPS\. Add it"):
        issuing.issue(user)


@pytest.mark.parametrize("shape", ["{}", "/ws/{}/", "ws%5F/{}", "/ws/{}?x"])
def test_path_that_contains_a_token_is_refused_and_not_stored(user, shape):
    """The database would store the unused token otherwise."""
    token = issuing.issue(user)
    for secret in (
        token,
        token.upper(),
        token.replace("_", "%5F", 1),
        token.replace("_", "%255F", 1),
    ):
        with pytest.raises(ValueError, match="without host, query and token") as caught:
            issuing.issue(user, path=shape.format(secret))

        assert not seen([token[4:]], str(caught.value))
    assert WebSocketToken.objects.count() == 1


def test_traceback_of_a_failing_store_shows_no_token_in_the_packages_frames(user, monkeypatch):
    """The control has a local variable that holds the token."""

    def breaks(*args, **fields):
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(DatabaseTokenStore, "add", breaks)
    monkeypatch.setattr(issuing, "new_secret", lambda: "s" * 43)

    def naive():
        token = "wst_" + issuing.new_secret()
        DatabaseTokenStore().add(None, 1, digest=digests.digest_of(token))

    shown = []
    for issue in (naive, lambda: issuing.issue(user)):
        with pytest.raises(ZeroDivisionError) as caught:
            issue()
        reporter = ExceptionReporter(None, caught.type, caught.value, caught.tb)
        shown.append("s" * 43 in repr([frame["vars"] for frame in reporter.get_traceback_frames()]))

    assert shown == [True, False]
