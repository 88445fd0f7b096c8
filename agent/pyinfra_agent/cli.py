"""The `pyinfra-agent` command.

Errors go to stderr as one line that begins with the program's name, and say what to do; exit status 2
is a mistake in the arguments, 1 anything else.  Subcommands of the controller's side are found by
their entry points (group `pyinfra_agent.commands`), so that the agent never imports the connector.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from pyinfra_agent_protocol import DEFAULT_PORT, KeyFormatError
from pyinfra_agent_protocol.keys import fingerprint, format_public

from ._keys import StateError, default_state_dir, load_or_create_key

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_PROGRAM: Final = "pyinfra-agent"
_COMMANDS_GROUP: Final = "pyinfra_agent.commands"

USAGE: Final = """\
usage: pyinfra-agent COMMAND ...

On the machine that is to be managed:
  serve       run the agent: [--listen HOST:PORT] [--state-dir DIR] [--no-announce]
  authorize   let a controller in: [--state-dir DIR] 'KEY LINE'
  key         print this agent's key line: [--state-dir DIR]

On the machine that runs pyinfra:
  identity    print this controller's key line, making the key at first use
  loopback    run a private agent in the foreground and print the inventory name to use

Each has --help. For example, to let this controller in on a target:
  target$ pyinfra-agent authorize "$(ssh controller pyinfra-agent identity)"
  target$ pyinfra-agent serve
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(words)
        # Now, and not at exit: a full disk has to be reported and cannot be then.
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads on (`| head`): no error of ours. What is still buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (StateError, KeyFormatError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot write the output: {error.strerror}")
    except KeyboardInterrupt:
        return 130
    return status


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from ._version import software_version

        print(f"{_PROGRAM} {software_version()}")
        return 0
    name, rest = words[0], words[1:]
    if name in _COMMANDS:
        return _COMMANDS[name](rest)
    return _run_plugin(name, rest)


def _fail(text: str, status: int = 1) -> int:
    print(f"{_PROGRAM}: {text}", file=sys.stderr)
    return status


def _run_plugin(name: str, rest: list[str]) -> int:
    for entry in metadata.entry_points(group=_COMMANDS_GROUP):
        if entry.name == name:
            try:
                command = entry.load()
            except ModuleNotFoundError as error:
                return _fail(f"{name} needs the package {error.name}: pip install 'pyinfra-agentd[connector]'")
            status: int = command(rest)
            return status
    return _fail(f"there is no command {name!r} (see {_PROGRAM} --help)", 2)


def _state_parser(name: str, description: str) -> _Parser:
    parser = _Parser(prog=f"{_PROGRAM} {name}", description=description)
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=default_state_dir(),
        metavar="DIR",
        help="the agent's key and authorized_controllers (default: %(default)s)",
    )
    return parser


def _serve(rest: list[str]) -> int:
    parser = _state_parser("serve", "Run the agent in the foreground, until SIGTERM.")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        help="address to listen on, repeatable; IPv6 in brackets, port 0 for any"
        f" (default: every address, port {DEFAULT_PORT})",
    )
    parser.add_argument("--no-announce", action="store_true", help="do not announce this agent on the network")
    arguments = parser.parse_args(rest)
    try:
        from ._serve import serve
    except ModuleNotFoundError as error:
        return _fail(f"serve needs the package {error.name}: pip install 'pyinfra-agentd[agent]'")
    try:
        addresses = [parse_listen(text) for text in arguments.listen or [f":{DEFAULT_PORT}"]]
    except ValueError as error:
        parser.error(str(error))
    return serve(arguments.state_dir, addresses)


def parse_listen(text: str) -> tuple[str | None, int]:
    """Read `HOST:PORT`, `[IPV6]:PORT` or `:PORT`; the host is None for every address.

    Raises:
        ValueError: it is none of these; the text says what it should look like.
    """
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        separator = ""
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"--listen {text!r} is not HOST:PORT, like 0.0.0.0:{DEFAULT_PORT} or [::1]:{DEFAULT_PORT}")
    return host or None, int(port)


def _authorize(rest: list[str]) -> int:
    parser = _state_parser(
        "authorize", "Let a controller in: its key line is what `pyinfra-agent identity` prints there."
    )
    parser.add_argument("line", metavar="'KEY LINE'", nargs="+", help="pyinfra-agent-key BASE64 [comment]")
    arguments = parser.parse_args(rest)
    from ._authorized import AuthorizedControllers

    controllers = AuthorizedControllers(arguments.state_dir)
    # Unquoted, a key line is several words: what was meant is plain.
    controller = controllers.authorize(" ".join(arguments.line))
    print(
        f"{controllers.path}: {fingerprint(controller.key)} {controller.comment} may now do everything this agent can"
    )
    return 0


def _key(rest: list[str]) -> int:
    arguments = _state_parser(
        "key", "Print this agent's key line, as known_agents and agent_public_key take it."
    ).parse_args(rest)
    pair = load_or_create_key(arguments.state_dir)
    print(format_public(pair.public))
    return 0


_COMMANDS: Final = {"serve": _serve, "authorize": _authorize, "key": _key}
