from functools import wraps

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView
from django.db import transaction
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from channels_websocket_utils.topics import topic_positions
from channels_websocket_utils.utils import disconnect_user

from .demo_users import DEMO_USERS
from .sessions import Session
from .sockets import end_socket, end_sockets_of, live_sockets
from .topics import RightsTopic

__all__ = ["SignInView", "account", "board", "sign_out_everywhere", "sockets"]


def staff_only(view):
    """Redirect anonymous users to the login page, and refuse users who are not staff."""

    @login_required
    @wraps(view)
    def wrapper(request):
        if request.user.is_staff:
            return view(request)
        return render(request, "board/refused.html", status=403)

    return wrapper


# The browser's back button must not show the page after the user has signed out.
@never_cache
@login_required
def board(request):
    rights = RightsTopic(pk=request.user.pk)
    context = {"rights": rights.name, "positions": topic_positions(rights)}
    return render(request, "board/board.html", context)


@never_cache
@staff_only
def sockets(request):
    """Show the live connections of this process. A POST ends one, or all of a user."""
    if request.method != "POST":
        return render(request, "board/sockets.html", {"owners": live_sockets()})
    username, socket_id = request.POST.get("user"), request.POST.get("socket")
    if username is not None:
        is_ended = end_sockets_of(username)
        outcome = f"All sockets of {username} were ended." if is_ended else "There is no such user."
    else:
        is_ended = end_socket(socket_id)
        outcome = f"Socket {socket_id} {'was ended' if is_ended else 'had already gone'}."
    messages.info(request, outcome)
    return redirect("sockets")


@never_cache
@login_required
def account(request):
    """Show the number of browsers with a session of the user, and a button to end them all."""
    sessions = Session.objects.filter(user=request.user, expire_date__gt=timezone.now())
    return render(request, "board/account.html", {"browsers": sessions.count()})


@require_POST
@login_required
def sign_out_everywhere(request):
    """End all sessions of the user, including this one, and their connections."""
    with transaction.atomic():
        Session.objects.filter(user=request.user).delete()
        # It takes effect at the commit. After that, a page has no session and gets no token.
        disconnect_user(request.user)
    logout(request)
    messages.success(request, "You were signed out in all browsers.")
    return redirect("login")


class SignInView(LoginView):
    template_name = "board/login.html"
    redirect_authenticated_user = True

    def get_context_data(self, **kwargs):
        # The passwords are public, so only a demo has these users.
        demo_users = DEMO_USERS if settings.DEBUG else []
        return super().get_context_data(demo_users=demo_users, **kwargs)
