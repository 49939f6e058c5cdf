from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView
from django.shortcuts import render
from django.views.decorators.cache import never_cache

from .demo_users import DEMO_USERS

__all__ = ["SignInView", "board"]


# Nothing for the browser's back button to show after signing out.
@never_cache
@login_required
def board(request):
    return render(request, "board/board.html")


class SignInView(LoginView):
    template_name = "board/login.html"
    redirect_authenticated_user = True
    extra_context = {"demo_users": DEMO_USERS}
