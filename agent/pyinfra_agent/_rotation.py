"""A new key for this agent, which everybody who knows the old one gets to know before it is used.

    key.next            made by `pyinfra-agent key --rotate`; announced to each controller that is let in
    certificate.next    what the fleet's authority says of it, if there is one
    key.old             what `pyinfra-agent key --commit` has replaced
    certificate.old

The agent that runs keeps its key until it is started again. Until then it goes on announcing the new one, and showing
the certificate of the one that it has.
"""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol.keys import fingerprint, format_public

from ._keys import KEY_FILE, StateError, create_key, load_key, load_or_create_key

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["commit_next_key", "stage_next_key"]

_CERTIFICATE_FILE: Final = "certificate"


def stage_next_key(state_dir: Path) -> None:
    """Make the next key if there is none, print its line, and say on standard error what comes next.

    Raises:
        StateError: a key cannot be read or written.
    """
    load_or_create_key(state_dir)
    path = _next(state_dir / KEY_FILE)
    try:
        if load_key(path) is None:
            create_key(path)
        following = load_key(path)
    except OSError as error:
        raise StateError(f"the next key {path} cannot be used: {error.strerror}") from error
    if following is None:
        raise StateError(f"the next key {path} was removed while it was being made: start again")
    line = format_public(following.public)
    _say(f"The next key of this agent, {fingerprint(following.public)}, is in {path}.")
    _say("Each controller that has pinned the one in use gets to know it when it connects. Others have to be told:")
    _say("- where host data has agent_public_key: add the line below to it, which may hold two;")
    _say(f"- where the agent is certified: pyinfra-agent ca sign --agent NAME {shlex.quote(line)}")
    _say(f"  and write the certificate into {_next(state_dir / _CERTIFICATE_FILE)}.")
    _say("When every controller has connected once: pyinfra-agent key --commit, and start the agent again.")
    print(line)


def commit_next_key(state_dir: Path) -> None:
    """Put the next key, and its certificate, in the place of those in use; what they were is kept beside them.

    Raises:
        StateError: there is no next key, or no certificate for it where the old one has one, or a file cannot be
            put in place.
    """
    path, certificate = state_dir / KEY_FILE, state_dir / _CERTIFICATE_FILE
    try:
        following = load_key(_next(path))
        if following is None:
            raise StateError(f"there is no next key {_next(path)}: pyinfra-agent key --rotate makes one")
        if _next(certificate).exists():
            _put_in_place(certificate)
        elif certificate.exists():
            raise StateError(
                f"this agent has a certificate, and its next key has none: sign it, and write {_next(certificate)}"
            )
        _put_in_place(path)
    except OSError as error:
        raise StateError(f"the next key {_next(path)} cannot be put in place: {error.strerror}") from error
    _say(f"{path} is {fingerprint(following.public)} from the next start of the agent on:")
    _say(f"systemctl restart pyinfra-agent. Remove {path}.old when everything works.")


def _put_in_place(path: Path) -> None:
    old = path.with_name(f"{path.name}.old")
    with suppress(FileNotFoundError):
        old.unlink()
    with suppress(FileNotFoundError):
        os.link(path, old)
    os.replace(_next(path), path)


def _next(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


def _say(text: str) -> None:
    # Standard output holds what is to be pasted.
    print(text, file=sys.stderr)
