"""The key and certificate of one agent, for somebody who does not trust it yet: half a handshake."""

from __future__ import annotations

from typing import NoReturn

from pyinfra_agent_protocol import SESSION_ID_BYTES, ControllerPayload
from pyinfra_agent_protocol.keys import KeyPair

from ._opening import Endpoint, open_link

__all__ = ["fetch"]


class _Shown(Exception):
    def __init__(self, key: bytes, certificate: bytes) -> None:
        super().__init__()
        self.key = key
        self.certificate = certificate


def fetch(host: str, port: int, seconds: float) -> tuple[bytes, bytes]:
    """Return the key that the agent proves, and the certificate that it shows with it; b"" for none.

    The handshake ends before anything of ours is sent: the agent does not learn who has asked.

    Raises:
        Unreachable: nobody is there, or no agent, or not within *seconds*.
    """
    never_sent = ControllerPayload(session=bytes(SESSION_ID_BYTES), attempt=1, resume=False)
    try:
        open_link(Endpoint(host, port), KeyPair.generate(), _stop, never_sent, seconds)
    except _Shown as shown:
        return shown.key, shown.certificate
    raise AssertionError  # _stop has raised


def _stop(key: bytes, certificate: bytes) -> NoReturn:
    raise _Shown(key, certificate)
