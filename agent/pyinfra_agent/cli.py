"""The `pyinfra-agent` command.

Errors go to stderr as one line that begins with the program's name, and say what to do; exit status 2
is a mistake in the arguments, 1 anything else.  Subcommands of the controller's side are found by
their entry points (group `pyinfra_agent.commands`), so that the agent never imports the connector.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from pyinfra_agent_protocol import DEFAULT_PORT, KeyFormatError
from pyinfra_agent_protocol.keys import format_public

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
  authorize   let a controller in: [--config FILE] [--state-dir DIR] [OPTIONS] 'KEY LINE'
  revoke      let one in no more: KEY|FINGERPRINT|COMMENT|SERIAL
  controllers list who is let in
  audit       show what controllers have asked for: [--since WHEN] [--controller WHO] [--failed] ...
  key         print this agent's key line, or change the key: [--rotate | --commit] [--state-dir DIR]
  status      show what the running agent does: [--config FILE] [--state-dir DIR] [--json | --prometheus]
  install     make it a service of this machine: [--user NAME] [--listen HOST:PORT] [--socket]
  uninstall   remove that service: [--purge]
  check-config
              print the settings that the configuration file makes, or what is wrong with it: [FILE]

On the machine that runs pyinfra:
  identity    print this controller's key line, making the key at first use
  discover    who is there, and why somebody is not: [SELECTOR] [--json] [--watch]
  exec        run one command on an agent, as ssh does: HOST -- CMD [ARG...]
  trust       which agents and authorities this controller knows: list, add, remove
  ca          a fleet key and what it signs: init, sign, list, revoke
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
    from importlib import metadata  # a mebibyte, which `serve` does without

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
    from ._config import load_config, parse_address
    from ._serve import serve

    settings = _load_settings(arguments.config)
    if arguments.listen:
        try:
            settings = replace(settings, listen=tuple(map(parse_address, arguments.listen)))
        except ValueError as error:
            parser.error(f"--listen {error}")
    if arguments.no_announce:
        settings = replace(settings, announce=False)
    state_dir = arguments.state_dir or settings.state_dir or default_state_dir()
    # Absolute: for moments the agent is where a command starts (`_execute`).
    state_dir = state_dir.absolute()
    return serve(settings, state_dir, lambda: load_config(arguments.config))


def _status(rest: list[str]) -> int:
    parser = _state_parser("status", "Show what the running agent does; for root and the agent's own user.")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="as one JSON object")
    forms.add_argument("--prometheus", action="store_true", help="as metrics in Prometheus's text format")
    arguments = parser.parse_args(rest)
    from ._metrics import format_person, format_prometheus
    from ._status import ask_status

    state_dir = _state_dir(arguments)
    report = ask_status(state_dir)
    if arguments.prometheus:
        print(format_prometheus(report), end="")
        return 0 if report else 1
    if report is None:
        return _fail(f"no agent with --state-dir {state_dir} answers: is it running? (systemctl status pyinfra-agent)")
    print(f"{json.dumps(report)}\n" if arguments.json else format_person(report), end="")
    return 0


def _install(rest: list[str]) -> int:
    parser = _Parser(
        prog=f"{_PROGRAM} install",
        description="Make the agent, as installed for this Python, a service of this machine: at every boot, and now."
        " Repeat it after an upgrade; nothing that runs is lost. Where there is no systemd, what to do is printed.",
    )
    parser.add_argument("--user", metavar="NAME", help="run it as this user (default: root)")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", action="append", default=[], help="address to listen on, repeatable"
    )
    parser.add_argument(
        "--socket",
        action="store_true",
        help="let systemd listen: connections that come while the agent restarts wait, and none is refused",
    )
    arguments = parser.parse_args(rest)
    from ._install import install

    return install(user=arguments.user, listen=arguments.listen, with_socket=arguments.socket)


def _uninstall(rest: list[str]) -> int:
    parser = _Parser(
        prog=f"{_PROGRAM} uninstall", description="Remove the service. Commands that it started are left alone."
    )
    parser.add_argument("--purge", action="store_true", help="remove the agent's keys and configuration, too")
    arguments = parser.parse_args(rest)
    from ._install import uninstall

    return uninstall(purge=arguments.purge)


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
    from ._trust_commands import add_authorize_options, authorize

    add_authorize_options(parser)
    arguments = parser.parse_args(rest)
    return authorize(arguments, _state_dir(arguments))


def _revoke(rest: list[str]) -> int:
    parser = _state_parser("revoke", "Let a controller in no more. Its sessions end within a second.")
    parser.add_argument(
        "who",
        metavar="KEY|FINGERPRINT|COMMENT|SERIAL",
        nargs="+",
        help="the controller's key line, its fingerprint, the comment of its line, or a certificate's serial",
    )
    arguments = parser.parse_args(rest)
    from ._trust_commands import revoke

    return revoke(" ".join(arguments.who), _state_dir(arguments))


def _controllers(rest: list[str]) -> int:
    parser = _state_parser("controllers", "List who is let in: fingerprint, kind, options and comment of each line.")
    arguments = parser.parse_args(rest)
    from ._trust_commands import list_controllers

    return list_controllers(_state_dir(arguments))


def _audit(rest: list[str]) -> int:
    parser = _Parser(
        prog=f"{_PROGRAM} audit",
        description="Show what controllers have asked this agent for, from the systemd journal or a log of JSON lines.",
    )
    from ._audit_command import add_audit_options, audit

    add_audit_options(parser)
    return audit(parser.parse_args(rest))


def _key(rest: list[str]) -> int:
    parser = _state_parser("key", "Print this agent's key line, as known_agents and agent_public_key take it.")
    rotation = parser.add_mutually_exclusive_group()
    rotation.add_argument("--rotate", action="store_true", help="make the next key, and print its line")
    rotation.add_argument("--commit", action="store_true", help="use the next key from the next start on")
    arguments = parser.parse_args(rest)
    from ._rotation import commit_next_key, stage_next_key

    if arguments.rotate:
        stage_next_key(_state_dir(arguments))
    elif arguments.commit:
        commit_next_key(_state_dir(arguments))
    else:
        print(format_public(load_or_create_key(_state_dir(arguments)).public))
    return 0


_COMMANDS: Final = {
    "serve": _serve,
    "authorize": _authorize,
    "revoke": _revoke,
    "controllers": _controllers,
    "audit": _audit,
    "key": _key,
    "status": _status,
    "install": _install,
    "uninstall": _uninstall,
    "check-config": _check_config,
}
