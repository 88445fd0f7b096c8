"""One connection from its first byte to its last: handshake, decision, session.

Before the controller is known, a peer gets a preface, one handshake message and one refusal out of
us, and nothing it sends reaches more than the handshake.  Every refusal is the same encrypted record;
the reason is in our log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

from pyinfra_agent_protocol import (
    AgentPayload,
    ControllerPayload,
    ProtocolError,
    Responder,
    encode_denied,
    encode_welcome,
)
from pyinfra_agent_protocol.keys import fingerprint

from ._link import Link
from ._log import describe_failure, log

if TYPE_CHECKING:
    from pyinfra_agent_protocol import ControllerHello
    from pyinfra_agent_protocol.keys import KeyPair

    from ._admission import Admission
    from ._authorized import Controller
    from ._session import SessionTable
    from ._settings import Settings

__all__ = ["Authorizer", "ConnectionServer"]

_HANDSHAKE_READ_BYTES: Final = 4096


class Authorizer(Protocol):
    """Decides who is let in: the file of a service, the one key of a loopback agent."""

    def find(self, key: bytes) -> Controller | None:
        """Return the controller that holds *key*, or None if it is not let in."""


class ConnectionServer:
    """Serves connections; made once by the agent."""

    def __init__(
        self,
        settings: Settings,
        key: KeyPair,
        authorizer: Authorizer,
        admission: Admission,
        sessions: SessionTable,
    ) -> None:
        self._settings = settings
        self._key = key
        self._authorizer = authorizer
        self._admission = admission
        self._sessions = sessions

    async def serve(self, stream: trio.abc.HalfCloseableStream, peer: str) -> None:
        """Serve one connection until it ends; raises nothing but Cancelled."""
        try:
            async with stream:
                link = await self._admit(stream, peer)
                if link is not None:
                    await self._carry(link)
        except Exception as error:
            # A fence that nothing is expected to reach: one connection fails, the agent lives on.
            log("connection-failed", peer=peer, error=describe_failure(error))

    async def _carry(self, link: Link) -> None:
        try:
            try:
                await link.run()
            except Exception:
                # The record that was being read may have been half done: nothing can be resumed from that.
                self._sessions.drop(link.session)
                raise
            self._sessions.lose(link.session)
            await link.let_go()
        finally:
            link.gone.set()

    async def _admit(self, stream: trio.abc.HalfCloseableStream, peer: str) -> Link | None:
        """Shake hands and decide, all before one deadline; a refusal is sent here, a welcome by the link."""
        with self._admission.admit(peer, self._settings.handshake_seconds) as scope:
            try:
                return await self._try_admit(stream, peer)
            except ProtocolError as error:
                log("handshake-refused", peer=peer, reason=error)
            except trio.BrokenResourceError:
                log("handshake-refused", peer=peer, reason="the connection broke")
        if scope.cancelled_caught:
            log("handshake-refused", peer=peer, reason="it took too long, or had to make room")
        return None

    async def _try_admit(self, stream: trio.abc.HalfCloseableStream, peer: str) -> Link | None:
        responder = Responder(self._key, AgentPayload().encode())
        hello = await self._shake_hands(stream, responder)
        if hello is None:
            # A probe stops here, as discovery does: it wanted our key and has told us nothing.
            return None
        transport = responder.transport()
        controller = self._authorizer.find(hello.key)
        if controller is None:
            log("denied", peer=peer, key=fingerprint(hello.key), reason="this key is not authorised")
            await stream.send_all(transport.encrypt(encode_denied()))
            return None
        payload = ControllerPayload.decode(hello.payload)
        log("connected", peer=peer, controller=controller, key=fingerprint(hello.key), cipher=hello.suite.name)
        session, welcome = await self._sessions.join(controller, payload)
        if session is None:
            await stream.send_all(transport.encrypt(encode_welcome(welcome)))
            return None
        return Link(stream, transport, session, welcome, self._settings)

    async def _shake_hands(self, stream: trio.abc.HalfCloseableStream, responder: Responder) -> ControllerHello | None:
        while True:
            data = await stream.receive_some(_HANDSHAKE_READ_BYTES)
            if not data:
                return None
            hello = responder.receive_data(bytes(data))
            answer = responder.data_to_send()
            if answer:
                await stream.send_all(answer)
            if hello is not None:
                return hello
