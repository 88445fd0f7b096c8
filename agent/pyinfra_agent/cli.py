"""The `pyinfra-agent` command.

Errors go to stderr as one line that begins with the program's name, and say what to do; exit status 2
is a mistake in the arguments, 1 anything else.  Subcommands of the controller's side are found by
their entry points (group `pyinfra_agent.commands`), so that the agent never imports the connector.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from pyinfra_agent_protocol import DEFAULT_PORT, KeyFormatError
from pyinfra_agent_protocol.keys import fingerprint, format_public

from ._keys import StateError, default_state_dir, load_or_create_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._settings import Settings

__all__ = ["main"]

_PROGRAM: Final = "pyinfra-agent"
_COMMANDS_GROUP: Final = "pyinfra_agent.commands"

USAGE: Final = """\
usage: pyinfra-agent COMMAND ...

On the machine that is to be managed:
  serve       run the agent: [--config FILE] [--listen HOST:PORT] [--state-dir DIR] [--no-announce]
  authorize   let a controller in: [--config FILE] [--state-dir DIR] 'KEY LINE'
  key         print this agent's key line: [--config FILE] [--state-dir DIR]
  check-config
              print the settings that the configuration file makes, or what is wrong with it: [FILE]

On the machine that runs pyinfra:
  identity    print this controller's key line, making the key at first use
  exec        run one command on an agent, as ssh does: HOST -- CMD [ARG...]
  rsh         remote shell for rsync: rsync -e 'pyinfra-agent rsh' SRC HOST:DST
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
        try:
            return _COMMANDS[name](rest)
        except ModuleNotFoundError as error:
            return _fail(f"{name} needs the package {error.name}: pip install 'pyinfra-agentd[agent]'")
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
        "--config",
        type=Path,
        metavar="FILE",
        help="the configuration file (default: /etc/pyinfra-agent/agent.toml for root,"
        " ~/.config/pyinfra-agent/agent.toml for others, if it is there)",
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="the agent's key and authorized_controllers (default: the configuration's state_dir,"
        " else /var/lib/pyinfra-agent for root, ~/.local/state/pyinfra-agent for others)",
    )
    return parser


def _load_settings(path: Path | None) -> Settings:
    from ._config import ConfigError, load_config

    try:
        return load_config(path)
    except ConfigError as error:
        for line in error.lines:
            _fail(line)
        sys.exit(1)


def _state_dir(arguments: argparse.Namespace) -> Path:
    """Return where the agent keeps its state: as the command line says, else as the configuration does."""
    given: Path | None = arguments.state_dir
    return given or _load_settings(arguments.config).state_dir or default_state_dir()


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
    from ._config import parse_address
    from ._serve import serve

    settings = _load_settings(arguments.config)
    if arguments.listen:
        try:
            settings = replace(settings, listen=tuple(map(parse_address, arguments.listen)))
        except ValueError as error:
            parser.error(f"--listen {error}")
    if arguments.no_announce:
        settings = replace(settings, announce=False)
    return serve(settings, arguments.state_dir or settings.state_dir or default_state_dir())


def _check_config(rest: list[str]) -> int:
    parser = _Parser(
        prog=f"{_PROGRAM} check-config",
        description="Print the settings that the agent would run with, as a configuration file, or what is wrong.",
    )
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        nargs="?",
        help="the configuration file (default: the one that `pyinfra-agent serve` reads)",
    )
    arguments = parser.parse_args(rest)
    from ._config import format_config

    settings = _load_settings(arguments.file)
    print(format_config(replace(settings, state_dir=settings.state_dir or default_state_dir())), end="")
    return 0


def _authorize(rest: list[str]) -> int:
    parser = _state_parser(
        "authorize", "Let a controller in: its key line is what `pyinfra-agent identity` prints there."
    )
    parser.add_argument("line", metavar="'KEY LINE'", nargs="+", help="pyinfra-agent-key BASE64 [comment]")
    arguments = parser.parse_args(rest)
    from ._authorized import AuthorizedControllers

    controllers = AuthorizedControllers(_state_dir(arguments))
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
    pair = load_or_create_key(_state_dir(arguments))
    print(format_public(pair.public))
    return 0


_COMMANDS: Final = {"serve": _serve, "authorize": _authorize, "key": _key, "check-config": _check_config}
