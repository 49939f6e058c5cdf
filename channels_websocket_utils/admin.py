"""Django's admin: a list of the tokens, and actions that revoke tokens and disconnect users."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import TYPE_CHECKING

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth import get_permission_codename, get_user_model
from django.db import router, transaction
from django.utils.formats import date_format
from django.utils.timezone import is_aware, localtime

from .conf import get_setting
from .live import broadcast
from .models import WebSocketRevocation, WebSocketToken
from .tokens import clock, redeeming
from .tokens.cache_store import cache_alias
from .tokens.database_store import DatabaseTokenStore
from .utils import disconnect_user

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence, Sized
    from typing import Any, ClassVar, TypeAlias

    from django.db.models import Model, QuerySet
    from django.http import HttpRequest, HttpResponse
    from django.urls import URLPattern

    _Admin: TypeAlias = admin.ModelAdmin[Any]
    _Rows: TypeAlias = QuerySet[WebSocketToken]
    _TokenAdmin = admin.ModelAdmin[WebSocketToken]
else:
    _TokenAdmin = admin.ModelAdmin

__all__ = ["WebSocketTokenAdmin", "disconnect_users"]


@admin.action(description="Disconnect: end all live WebSockets", permissions=["change"])
def disconnect_users(user_admin: _Admin, request: HttpRequest, queryset: QuerySet[Any]) -> None:
    """
    End all live connections of the selected users and revoke their unused tokens.

    An action for the admin of the user model. It skips users that ``request.user`` may not change.
    """
    _disconnect(user_admin, request, queryset, user_admin.has_change_permission)


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: _Admin) -> list[tuple[str, str]]:
        return [(state, state) for state in ("unused", "redeemed", "expired")]

    def queryset(self, request: HttpRequest, queryset: _Rows) -> _Rows | None:
        states, state = dict(self.lookup_choices), self.value()
        return queryset.filter(redeeming.in_state(state)) if state in states else None


class CreatedFilter(admin.SimpleListFilter):
    """By time since creation, because Django's filter of dates uses local days."""

    title = "created"
    parameter_name = "created"
    spans = {"minute": 60, "hour": 3600, "day": 24 * 3600, "week": 7 * 24 * 3600}

    def lookups(self, request: HttpRequest, model_admin: _Admin) -> list[tuple[str, str]]:
        return [(span, f"in the last {span}") for span in self.spans]

    def queryset(self, request: HttpRequest, queryset: _Rows) -> _Rows | None:
        span = self.value()
        if span not in self.spans:
            return None
        since = clock.now() - timedelta(seconds=self.spans[span])
        return queryset.filter(created_at__gte=since)


def _moment(name: str) -> Callable[[WebSocketTokenAdmin, WebSocketToken], str]:
    """Return a column for the field ``name``, a time, that shows seconds."""

    @admin.display(description=name.removesuffix("_at"), ordering=name)
    def show(self: WebSocketTokenAdmin, token: WebSocketToken) -> str:
        moment = getattr(token, name)
        if moment is None:
            return self.get_empty_value_display()
        # Without USE_TZ the times are naive, but still UTC.
        aware = moment if is_aware(moment) else moment.replace(tzinfo=timezone.utc)
        # With no-break spaces a narrow column shows the date above the time.
        return date_format(localtime(aware), "j\u00a0M\u00a0Y H:i:s")

    return show


@admin.register(WebSocketToken)
class WebSocketTokenAdmin(_TokenAdmin):
    """
    A read-only list of the tokens in the database, with actions that revoke them.

    An admin site that registers it adds the action ``disconnect_users`` to its admin of the user
    model.
    """

    list_display = ["digest_prefix", "user", "state", "created", "expires", "used"]
    list_filter = [StateFilter, CreatedFilter]
    list_select_related = ["user"]
    search_help_text = "The name of a user, or the first digits of a digest"
    ordering = ["-created_at"]
    fields: ClassVar[Any] = [*list_display, "backend", "path", "is_session_bound"]
    readonly_fields = fields
    actions = ["revoke_tokens", "disconnect_users_of_tokens"]

    created, expires, used = map(_moment, ["created_at", "expires_at", "used_at"])

    @admin.display(description="digest", ordering="digest")
    def digest_prefix(self, token: WebSocketToken) -> str:
        return token.digest[:12]

    @admin.display
    def state(self, token: WebSocketToken) -> str:
        return redeeming.state_of(token)

    @admin.display(description="bound to a session", boolean=True)
    def is_session_bound(self, token: WebSocketToken) -> bool:
        return bool(token.session_digest)

    def get_queryset(self, request: HttpRequest) -> _Rows:
        # As the stores do, because on a replica a redeemed token may still be unused.
        return super().get_queryset(request).using(router.db_for_write(WebSocketToken))

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        return [f"user__{get_user_model().USERNAME_FIELD}", "digest__startswith"]

    def get_urls(self) -> list[URLPattern]:
        # Not in ready(): Django builds the URLs after every app has registered its models.
        _add_to_users(self.admin_site)
        return super().get_urls()

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if request.method == "GET" and (alias := cache_alias()):
            messages.warning(
                request,
                f"This site keeps its tokens in CACHES[{alias!r}]. The tokens that are listed here "
                "are older and are not valid.",
            )
        return super().changelist_view(request, extra_context)

    @admin.action(description="Revoke the selected tokens", permissions=["revoke"])
    def revoke_tokens(self, request: HttpRequest, queryset: _Rows) -> None:
        unused = [token for token in queryset if redeeming.state_of(token) == "unused"]
        store = DatabaseTokenStore()
        with transaction.atomic(using=router.db_for_write(WebSocketToken)):
            # One at a time, because a connection may redeem a token meanwhile.
            revoked = [token for token in unused if store.revoke(digest=token.digest)]
            _log(request, revoked, DELETION, "Revoked before it was redeemed.")
        text = f"Revoked {_count(revoked, 'token')}."
        if left := len(queryset) - len(revoked):
            text += f" {left} were already redeemed or expired."
        self.message_user(request, text, messages.SUCCESS if revoked else messages.WARNING)

    @admin.action(
        description="Disconnect the users of the selected tokens", permissions=["disconnect"]
    )
    def disconnect_users_of_tokens(self, request: HttpRequest, queryset: _Rows) -> None:
        users = {token.user_id: token.user for token in queryset}
        model = get_user_model()
        if self.admin_site.is_registered(model):
            # Only users that the list of users shows to this request.
            visible = self.admin_site.get_model_admin(model).get_queryset(request)
            users = {user.pk: user for user in visible.filter(pk__in=users)}
        _disconnect(self, request, users.values(), self.has_disconnect_permission)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        # Django checks this for each token of a user that is deleted, and then it is allowed. The
        # pages of tokens offer no deletion.
        page = (request.resolver_match and request.resolver_match.url_name) or ""
        own = f"{self.opts.app_label}_{self.opts.model_name}_"
        return obj is not None and not page.startswith(own)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return super().has_change_permission(request)

    def has_disconnect_permission(self, request: HttpRequest, user: Any = None) -> bool:
        model = get_user_model()
        if self.admin_site.is_registered(model):
            return self.admin_site.get_model_admin(model).has_change_permission(request, user)
        codename = get_permission_codename("change", model._meta)
        return request.user.has_perm(f"{model._meta.app_label}.{codename}")


def _disconnect(
    model_admin: _Admin,
    request: HttpRequest,
    users: Collection[Any],
    may_change: Callable[[HttpRequest, Any], bool],
) -> None:
    allowed = [user for user in users if may_change(request, user)]
    # One transaction: no user is disconnected without a log entry. The events follow its commit.
    with transaction.atomic(using=router.db_for_write(WebSocketRevocation)):
        for user in allowed:
            disconnect_user(user)
        _log(request, allowed, CHANGE, "Ended all live WebSockets.")
    if not allowed:
        text = "No user was disconnected"
    elif broadcast.shared_layer() is not None:
        text = f"All live WebSockets of {_count(allowed, 'user')} end now"
    else:
        text = (
            f"All live WebSockets of {_count(allowed, 'user')} end now, those of other processes "
            f"within {get_setting('RECHECK_INTERVAL')} s"
        )
    if refused := len(users) - len(allowed):
        text += f"; {refused} you may not change"
    model_admin.message_user(request, f"{text}.", messages.SUCCESS if allowed else messages.WARNING)


def _log(request: HttpRequest, objects: Sequence[Model], action_flag: int, text: str) -> None:
    user: Any = request.user
    LogEntry.objects.log_actions(user.pk, objects, action_flag, text)


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"


def _add_to_users(admin_site: admin.AdminSite) -> None:
    model = get_user_model()
    if not admin_site.is_registered(model):
        return
    user_admin = admin_site.get_model_admin(model)
    # None disables all actions.
    if user_admin.actions is None:
        return
    names = [getattr(action, "__name__", action) for action in user_admin.actions]
    if disconnect_users.__name__ not in names:
        user_admin.actions = [*user_admin.actions, disconnect_users]
