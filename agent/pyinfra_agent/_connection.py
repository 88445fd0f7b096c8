"""One connection from its first byte to its last: handshake, decision, session.

Before the controller is known, a peer gets a preface, one handshake message and one refusal out of
us, and nothing it sends reaches more than the handshake.  Every refusal is the same encrypted record;
the reason is in our log.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

import trio

from pyinfra_agent_protocol import (
    AgentPayload,
    ControllerPayload,
    MessageInvalid,
    ProtocolError,
    Responder,
    encode_denied,
    encode_welcome,
)
from pyinfra_agent_protocol.keys import fingerprint

from ._authorized import NotAdmitted
from ._limits import RareLog
from ._link import Link
from ._log import describe_failure, log
from ._metrics import Counters

if TYPE_CHECKING:
    from pyinfra_agent_protocol import ControllerHello
    from pyinfra_agent_protocol.keys import KeyPair

    from ._admission import Admission, Seat
    from ._controllers import Controller
    from ._session import SessionTable
    from ._settings import Settings

__all__ = ["Authorizer", "ConnectionServer"]

_HANDSHAKE_READ_BYTES: Final = 4096
#: Refusals that each get a line of their own before only their number is told.
_REFUSALS_IN_A_ROW: Final = 50


class Authorizer(Protocol):
    """Decides who is let in: the files of a service, the one key of a loopback agent."""

    def certificate_of(self, key: bytes) -> bytes:
        """Return what this agent shows of itself while its key is *key*; empty where it has none."""

    def next_key_after(self, key: bytes) -> bytes:
        """Return the key that this agent will have when its rotation is over; empty where *key* stays."""

    @property
    def signature(self) -> object:
        """Something that changes when an answer of `admit` may."""

    def admit(self, key: bytes, certificate: bytes, peer: str) -> Controller:
        """Return the controller that has proved *key* and shown *certificate*, coming from *peer*.

        Raises:
            NotAdmitted: it is not let in.
        """


class ConnectionServer:
    """Serves connections; made once by the agent."""

    def __init__(
        self,
        settings: Settings,
        key: KeyPair,
        authorizer: Authorizer,
        admission: Admission,
        sessions: SessionTable,
        counters: Counters | None = None,
    ) -> None:
        self._settings = settings
        self._key = key
        self._authorizer = authorizer
        self._admission = admission
        self._sessions = sessions
        self._counters = counters or Counters()
        # Anybody who reaches the port can cause these.
        self._denied = RareLog("denied", least=_REFUSALS_IN_A_ROW)
        self._refused = RareLog("handshake-refused", least=_REFUSALS_IN_A_ROW)

    async def serve(self, stream: trio.abc.HalfCloseableStream, peer: str, seat: Seat | None = None) -> None:
        """Serve one connection until it ends; raises nothing but Cancelled."""
        try:
            async with stream:
                link = await self._admit(stream, peer, seat or self._admission.enter(peer, lambda: None))
                if link is None:
                    self._counters.refused += 1
                else:
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

    async def _admit(self, stream: trio.abc.HalfCloseableStream, peer: str, seat: Seat) -> Link | None:
        """Shake hands and decide, all before one deadline; a refusal is sent here, a welcome by the link."""
        with self._admission.handshake(seat, self._settings.handshake_seconds) as scope:
            try:
                return await self._try_admit(stream, peer, seat)
            except (ProtocolError, trio.BrokenResourceError) as error:
                seat.has_failed = True
                reason = error if isinstance(error, ProtocolError) else "the connection broke"
                self._refused.note(peer=peer, reason=reason)
        if scope.cancelled_caught:
            self._refused.note(peer=peer, reason="it took too long, or had to make room")
        return None

    async def _try_admit(self, stream: trio.abc.HalfCloseableStream, peer: str, seat: Seat) -> Link | None:
        started = trio.current_time()
        certificate = self._authorizer.certificate_of(self._key.public)
        responder = Responder(self._key, AgentPayload(certificate=certificate).encode())
        hello = await self._shake_hands(stream, responder, seat)
        if hello is None:
            # A probe stops here, as discovery does: it wanted our key and has told us nothing.
            return None
        transport = responder.transport()
        payload = _read_payload(hello.payload)
        shown = payload.certificate if isinstance(payload, ControllerPayload) else b""
        try:
            controller = self._authorizer.admit(hello.key, shown, peer)
        except NotAdmitted as reason:
            seat.has_failed = True
            self._denied.note(peer=peer, key=fingerprint(hello.key), reason=reason)
            await stream.send_all(transport.encrypt(encode_denied()))
            return None
        if isinstance(payload, MessageInvalid):
            raise payload
        log(
            "connected",
            controller=controller,
            key=controller.fingerprint,
            peer=peer,
            cipher=hello.suite.name,
            user=controller.policy.user,
            ms=round((trio.current_time() - started) * 1000),
        )
        session, welcome = await self._sessions.join(controller, payload, peer)
        if session is None:
            await stream.send_all(transport.encrypt(encode_welcome(welcome)))
            return None
        welcome = replace(welcome, next_key=self._authorizer.next_key_after(self._key.public))
        return Link(stream, transport, session, welcome, self._settings, self._counters)

    async def _shake_hands(
        self, stream: trio.abc.HalfCloseableStream, responder: Responder, seat: Seat
    ) -> ControllerHello | None:
        while True:
            data = await stream.receive_some(_HANDSHAKE_READ_BYTES)
            if not data:
                return None
            hello = responder.receive_data(bytes(data))
            answer = responder.data_to_send()
            if answer:
                self._admission.answer(seat)
                await stream.send_all(answer)
            if hello is not None:
                return hello


def _read_payload(data: bytes) -> ControllerPayload | MessageInvalid:
    """Return what the controller says, or what is wrong with it: who is not let in must not learn that."""
    try:
        return ControllerPayload.decode(data)
    except MessageInvalid as error:
        return error
