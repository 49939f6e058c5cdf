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

from channels_websocket_utils.utils import disconnect_user

from .demo_users import DEMO_USERS
from .sessions import Session
from .sockets import end_socket, end_sockets_of, live_sockets

__all__ = ["SignInView", "account", "board", "sign_out_everywhere", "sockets"]


def staff_only(view):
    """Send a stranger to the login page, and refuse who is signed in but not staff."""

    @login_required
    @wraps(view)
    def wrapper(request):
        if request.user.is_staff:
            return view(request)
        return render(request, "board/refused.html", status=403)

    return wrapper


# Nothing for the browser's back button to show after signing out.
@never_cache
@login_required
def board(request):
    return render(request, "board/board.html")


@never_cache
@staff_only
def sockets(request):
    """Show this process's live sockets; a POST ends one of them, or all of one user's."""
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
    """Show in how many browsers the user is signed in, with a button that signs out in all."""
    sessions = Session.objects.filter(user=request.user, expire_date__gt=timezone.now())
    return render(request, "board/account.html", {"browsers": sessions.count()})


@require_POST
@login_required
def sign_out_everywhere(request):
    """End all sessions of the user, this one included, and the sockets that they opened."""
    with transaction.atomic():
        Session.objects.filter(user=request.user).delete()
        # When this is committed: a page that asks for a token after that has no session.
        disconnect_user(request.user)
    logout(request)
    messages.success(request, "You were signed out in all browsers.")
    return redirect("login")


class SignInView(LoginView):
    template_name = "board/login.html"
    redirect_authenticated_user = True

    def get_context_data(self, **kwargs):
        # Their passwords are public, so they are in no other place than a demo.
        demo_users = DEMO_USERS if settings.DEBUG else []
        return super().get_context_data(demo_users=demo_users, **kwargs)
