"""An echo in django-socket, as its documentation writes one: for signed-in users, and for all."""

from django_socket import Events, login_required, ws

events = Events()


@events.on("echo")
async def echo(sock, data):
    await sock.send_json({"key": data["reply_key"], "text": data["text"]})


@ws("django_socket/")
@login_required
async def signed_in(sock):
    await events.run(sock)


@ws("django_socket_open/", auth=False)
async def everybody(sock):
    await events.run(sock)
