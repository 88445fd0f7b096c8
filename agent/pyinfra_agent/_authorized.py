"""Who may speak to this agent: by its key in `authorized_controllers`, or by a certificate of an authority in there.

An empty or missing file admits nobody; so does a line that cannot be read, which is reported by its number. Files are
looked at for each handshake, so a change needs no restart; sessions that live already follow it by `_watch`.

    state_dir/authorized_controllers    who is let in, and what for (`_controllers`)
    state_dir/revoked                   serials of certificates, and keys, that are not let in whoever says so
    state_dir/certificate               what this agent shows of itself (and .old, .next: see `_rotation`)
"""

from __future__ import annotations

import os
import pwd
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.certificates import (
    CLOCK_SKEW_SECONDS,
    CertificateRefused,
    Revocations,
    check_certificate,
    inspect_certificate,
    open_certificate,
    parse_certificate,
)
from pyinfra_agent_protocol.keys import parse_secret
from pyinfra_agent_protocol.trust_lines import parse_revocations

from ._controllers import Controller, Roster
from ._keys import KEY_FILE
from ._limits import RareLog
from ._log import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ._policy import Policy

__all__ = [
    "CONTROLLERS_NAME",
    "REVOKED_NAME",
    "AuthorizedControllers",
    "Controller",
    "NotAdmitted",
    "OneController",
    "is_open_to_others",
    "read_text",
]

CONTROLLERS_NAME: Final = "authorized_controllers"
REVOKED_NAME: Final = "revoked"
_CERTIFICATE_NAME: Final = "certificate"
_MAX_FILE_BYTES: Final = 16 * 1024 * 1024
_WRITABLE_BY_OTHERS: Final = 0o022

T = TypeVar("T")


class NotAdmitted(Exception):
    """Somebody is not let in; the text says why, for our own log only."""


class AuthorizedControllers:
    """The files in *state_dir*, read when they have changed."""

    def __init__(self, state_dir: Path) -> None:
        path = state_dir / CONTROLLERS_NAME
        self._roster = _Watched(path, lambda text: _read_roster(text, path), Roster())
        self._revoked = _Watched(state_dir / REVOKED_NAME, parse_revocations, Revocations())
        # While a key is rotated: the file of the key that runs may have become the old one, or not yet the new one.
        self._certificates = [
            _Watched(state_dir / f"{_CERTIFICATE_NAME}{ending}", _read_certificate, _NO_CERTIFICATE)
            for ending in ("", ".old", ".next")
        ]
        self._keys = [_Watched(state_dir / f"{KEY_FILE}{ending}", _read_public, b"") for ending in (".next", "")]

    def certificate_of(self, key: bytes) -> bytes:
        """Return what this agent shows of itself while its key is *key*; empty where it has none."""
        found = (watched.value for watched in self._certificates)
        return next((data for certified, data in found if certified == key), b"")

    def next_key_after(self, key: bytes) -> bytes:
        """Return the key that this agent will have when its rotation is over; empty where *key* stays."""
        found = (watched.value for watched in self._keys)
        return next((other for other in found if other and other != key), b"")

    @property
    def signature(self) -> object:
        """Something that changes when an answer of `admit` may."""
        return self._roster.look(), self._revoked.look()

    def admit(self, key: bytes, certificate: bytes, peer: str) -> Controller:
        """Return the controller that has proved *key* and shown *certificate* (empty if none).

        Args:
            key: 32 bytes.
            certificate: what it said in its payload; not verified.
            peer: `host:port` where it comes from; "" is anywhere.

        Raises:
            NotAdmitted: it is not let in.
        """
        roster = self._roster.value
        if key in self._revoked.value.keys:
            raise NotAdmitted("this key was revoked")
        controller = roster.controllers.get(key)
        if controller is None:
            if not certificate:
                raise NotAdmitted("this key is not authorised")
            controller = self._certified(roster, key, certificate)
        elif certificate:
            # It counts for nothing while the key does by itself, and may when that line is gone.
            controller = replace(controller, certificate=certificate)
        _check_policy(controller.policy, peer)
        return controller

    def _certified(self, roster: Roster, key: bytes, data: bytes) -> Controller:
        if self._revoked.is_broken:
            raise NotAdmitted("certificates count for nothing while the list of revoked ones cannot be read")
        try:
            certificate, authority = open_certificate(data, roster.authorities)
            check_certificate(
                certificate, authority, key=key, role="controller", now=time.time(), revoked=self._revoked.value
            )
        except CertificateRefused as refusal:
            raise NotAdmitted(f"this key is not authorised, and {refusal}") from None
        policy = roster.policies[authority.id]
        ends: float = certificate.not_after + CLOCK_SKEW_SECONDS
        if policy.expires is not None:
            ends = min(ends, policy.expires)
        return Controller(key, certificate.names[0], policy, ends, data)


class OneController:
    """Lets one key in, for everything: what a loopback agent needs."""

    signature: Final = None

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def certificate_of(self, key: bytes) -> bytes:
        """Return nothing: nobody signs a loopback agent."""
        return b""

    def next_key_after(self, key: bytes) -> bytes:
        """Return nothing: its key is for this run."""
        return b""

    def admit(self, key: bytes, certificate: bytes, peer: str) -> Controller:
        """Return the controller; raises `NotAdmitted` for every other key."""
        if key != self._controller.key:
            raise NotAdmitted("this key is not authorised")
        return self._controller


def _check_policy(policy: Policy, peer: str) -> None:
    if policy.expires is not None and time.time() >= policy.expires:
        raise NotAdmitted("its authorisation has expired")
    if peer and not policy.allows_source(peer):
        raise NotAdmitted("its key is not authorised from there")
    own = os.geteuid()
    if policy.user is not None and own != 0 and _name_of(own) != policy.user:
        raise NotAdmitted(f"its commands are to run as {policy.user}, which only an agent of root can do")


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class _Watched(Generic[T]):
    """A file as what it means: *empty* where it is missing, and what *read* made of it last where it is there.

    A file that others may write, or that cannot be read, means *empty*, too: whoever can write here owns the machine.
    """

    def __init__(self, path: Path, read: Callable[[str], T], empty: T) -> None:
        self._path = path
        self._read = read
        self._empty = empty
        self._value = empty
        self._seen: object = None
        self._is_broken = False
        self._unreadable = RareLog(f"{path.name.replace('_', '-')}-unreadable")

    def look(self) -> object:
        """Return what changes when the file does; None where it is not there."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error.errno
        return (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_mode,
            status.st_uid,
        )

    @property
    def value(self) -> T:
        """What the file means now."""
        signature = self.look()
        if signature != self._seen:
            self._seen = signature
            self._value, self._is_broken = self._load(signature)
        return self._value

    @property
    def is_broken(self) -> bool:
        """True if the file is there and means nothing for a reason that is in the log."""
        _ = self.value
        return self._is_broken

    def _load(self, signature: object) -> tuple[T, bool]:
        if signature is None:
            return self._empty, False
        name = self._path.name.replace("_", "-")
        try:
            if is_open_to_others(os.stat(self._path)):
                log(f"{name}-refused", path=self._path, reason="others may write it: chmod 600, chown")
                return self._empty, True
            text = read_text(self._path)
        except FileNotFoundError:
            return self._empty, False
        except OSError as error:
            self._unreadable.note(path=self._path, error=error.strerror)
            self._seen = object()  # what hindered us may pass without a change of the file
            return self._empty, True
        try:
            value = self._read(text)
        except KeyFormatError as error:
            log(f"{name}-refused", path=self._path, reason=error)
            return self._empty, True
        return value, False


#: The key that a certificate is for, and its bytes.
_NO_CERTIFICATE: Final = (b"", b"")


def _read_certificate(text: str) -> tuple[bytes, bytes]:
    data = parse_certificate(text)
    return inspect_certificate(data).key, data


def _read_public(text: str) -> bytes:
    return parse_secret(text).public


def _read_roster(text: str, path: Path) -> Roster:
    roster = Roster(text)
    for line in roster.broken:
        log("authorized-controllers-bad-line", path=path, line=line.number, reason=line.reason)
    return roster


def read_text(path: Path) -> str:
    """Return the text of a file; what is no UTF-8 in it cannot be part of a key. Raises OSError."""
    # O_NONBLOCK: opening a fifo must not wait for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        return file.read(_MAX_FILE_BYTES).decode("utf-8", "replace")


def is_open_to_others(status: os.stat_result) -> bool:
    """Tell whether somebody else than root and this process's user may write a file."""
    return bool(status.st_mode & _WRITABLE_BY_OTHERS) or status.st_uid not in (0, os.geteuid())
