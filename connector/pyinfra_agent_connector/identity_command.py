"""`pyinfra-agent identity`: this controller's key line, its passphrase, and its successor.

A handshake proves one key, so a new one is let in everywhere before it is used: `--rotate` makes it beside the one in
use, and `--commit` puts it in its place.
"""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public, format_secret

from ._command_line import CommandFailed, Parser, add_home, reporting, say
from ._identity import CERTIFICATE_FILE, IDENTITY_FILE, agent_home, load_or_create, open_key, own_comment
from ._passphrase import ENCRYPTED_KEY_PREFIX, ask_new_passphrase, seal
from ._private_file import create_private, replace_private

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ._identity import OpenedKey

__all__ = ["identity"]

_EPILOG: Final = """\
A key under a passphrase is opened by $PYINFRA_AGENT_PASSPHRASE, by the first line of the
file that $PYINFRA_AGENT_PASSPHRASE_FILE names, or at the terminal, once in a process.
Where there is no home, $PYINFRA_AGENT_KEY is the secret key line itself,
$PYINFRA_AGENT_KEY_FILE the name of a file of mode 0600 that holds it, and
$PYINFRA_AGENT_CERTIFICATE the line of its certificate.
"""


def identity(argv: Sequence[str]) -> int:
    """Print this controller's key line, making the key at first use; or change its passphrase, or the key."""
    from argparse import RawDescriptionHelpFormatter

    parser = Parser(
        prog="pyinfra-agent identity",
        description="Print this controller's key line for `pyinfra-agent authorize`, making the key at first use.",
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_home(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--passphrase", action="store_true", help="set, change or remove the passphrase of the key")
    what.add_argument("--rotate", action="store_true", help="make the next key, and say how agents get to know it")
    what.add_argument("--commit", action="store_true", help="use the next key from now on")
    arguments = parser.parse_args(argv)
    home = agent_home(arguments.home)
    run = _show
    if arguments.passphrase:
        run = _change_passphrase
    elif arguments.rotate:
        run = _rotate
    elif arguments.commit:
        run = _commit
    return reporting(partial(run, home))


def _show(home: Path) -> None:
    found = load_or_create(home)
    print(format_public(found.keypair.public, found.comment))


def _change_passphrase(home: Path) -> None:
    path = home / IDENTITY_FILE
    opened = _opened(path)
    passphrase = ask_new_passphrase(f"the controller's key {path}")
    replace_private(path, f"{_secret_line(opened.keypair, passphrase or None)}\n")
    say(f"{path} {'is under the new passphrase' if passphrase else 'has no passphrase any more'}")


def _rotate(home: Path) -> None:
    following = _next(home / IDENTITY_FILE)
    opened = _opened(home / IDENTITY_FILE)
    # Under the same passphrase as the key in use; a faster process's key stays.
    create_private(following, f"{_secret_line(KeyPair.generate(), opened.passphrase)}\n")
    key = _opened(following).keypair.public
    line = shlex.quote(format_public(key, own_comment()))
    certificate = _next(home / CERTIFICATE_FILE)
    say(f"The next key of this controller, {fingerprint(key)}, is in {following}; the one in use stays until --commit.")
    say("1. Let it in everywhere, by the key in use (give it the options that the old one has there):")
    print(f"pyinfra @agent/known exec -- pyinfra-agent authorize {line}")
    say("   or, where a certificate lets this controller in:")
    print(f"pyinfra-agent ca sign --controller {shlex.quote(own_comment())} {line} > {shlex.quote(str(certificate))}")
    say("2. See that it is let in:")
    variables = f"PYINFRA_AGENT_KEY_FILE={shlex.quote(str(following))}"
    if certificate.exists():
        variables += f' PYINFRA_AGENT_CERTIFICATE="$(cat {shlex.quote(str(certificate))})"'
    print(f"{variables} pyinfra @agent/known exec -- true")
    say("3. Use it from then on:")
    print("pyinfra-agent identity --commit")


def _commit(home: Path) -> None:
    path, certificate = home / IDENTITY_FILE, home / CERTIFICATE_FILE
    if not _next(path).exists():
        raise CommandFailed(f"there is no next key {_next(path)}: pyinfra-agent identity --rotate makes one")
    old = _opened(path).keypair.public
    new = _opened(_next(path)).keypair.public
    _put_in_place(path)
    if _next(certificate).exists():
        _put_in_place(certificate)
    elif certificate.exists():
        say(f"{certificate} is for the old key and will not be shown: have the new one signed")
    say(f"{path} is the key {fingerprint(new)} now; the old one is in {_old(path)}.")
    say("When everything works, take the old one back and remove its file:")
    print(f"pyinfra @agent/known exec -- pyinfra-agent revoke {fingerprint(old)}")
    print(f"rm {shlex.quote(str(_old(path)))}")


def _put_in_place(path: Path) -> None:
    """Let the next one take the place of *path*, which is never empty meanwhile; what it was is kept beside it."""
    with suppress(FileNotFoundError):
        _old(path).unlink()
    with suppress(FileNotFoundError):
        os.link(path, _old(path))
    os.replace(_next(path), path)


def _opened(path: Path) -> OpenedKey:
    opened = open_key(path)
    if opened is None:
        raise CommandFailed(f"there is no key {path} yet: pyinfra-agent identity makes one")
    return opened


def _secret_line(keypair: KeyPair, passphrase: str | None) -> str:
    if passphrase is None:
        return format_secret(keypair, own_comment())
    return seal(keypair.secret, passphrase, ENCRYPTED_KEY_PREFIX, own_comment())


def _next(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")
