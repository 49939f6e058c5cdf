"""An echo in chanx, as its documentation writes one: for everybody, and for signed-in users."""

from typing import Literal

from chanx.channels.authenticator import DjangoAuthenticator
from chanx.channels.websocket import AsyncJsonWebsocketConsumer
from chanx.core.decorators import channel, ws_handler
from chanx.messages.base import BaseMessage
from pydantic import BaseModel
from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import IsAuthenticated


class EchoPayload(BaseModel):
    text: str


class Echo(BaseMessage):
    action: Literal["echo"] = "echo"
    payload: EchoPayload


class Echoed(BaseMessage):
    action: Literal["echoed"] = "echoed"
    payload: EchoPayload


@channel(name="echo")
class Chanx(AsyncJsonWebsocketConsumer):
    send_completion = False

    @ws_handler
    async def echo(self, message: Echo) -> Echoed:
        return Echoed(payload=message.payload)


class Authenticator(DjangoAuthenticator):
    authentication_classes = [SessionAuthentication]
    permission_classes = [IsAuthenticated]


@channel(name="signed-in echo")
class SignedInChanx(Chanx):
    authenticator_class = Authenticator
