from django.contrib.auth.views import LogoutView
from django.urls import path

from . import views

urlpatterns = [
    path("", views.board, name="board"),
    path("sockets/", views.sockets, name="sockets"),
    path("account/", views.account, name="account"),
    path("account/sign-out/", views.sign_out_everywhere, name="sign_out_everywhere"),
    path("login/", views.SignInView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
]
