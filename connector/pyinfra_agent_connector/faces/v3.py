"""The face for pyinfra 3: a connector class.  It translates arguments, results and errors, and nothing else."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import gevent
from pyinfra import logger
from pyinfra.api.exceptions import ConnectError, InventoryError
from pyinfra.api.output import echo
from pyinfra.connectors.base import BaseConnector, DataMeta
from pyinfra.connectors.util import execute_command_with_sudo_retry, remove_any_sudo_askpass_file
from typing_extensions import TypedDict, override

from pyinfra_agent_protocol import DEFAULT_PORT, PtySize

from .._argv import build_invocation
from .._errors import AgentError, CommandTimeout
from .._files import local_chunks, local_sink
from .._identity import IdentityError, agent_home, load_or_create
from .._known import UntrustedAgent
from .._loopback import LoopbackAgent, start_loopback
from .._names import BadAgentName, NameKind, parse_agent_name, pin_name
from .._output import LazyCommandOutput, LinePrinter
from .._stdin import stdin_source
from .._transfers import read_route, write_route
from .._trust import key_checker
from ..client import CONNECT_SECONDS, RESUME_SECONDS, AgentClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import IOBase
    from typing import IO

    from pyinfra.api import StringCommand
    from pyinfra.api.arguments import ConnectorArguments
    from pyinfra.connectors.util import CommandOutput

    from pyinfra_agent_protocol import ExecResult

__all__ = ["AgentConnector", "AgentData"]

_LOOPBACK_HOST: Final = "127.0.0.1"
#: A shell reports death by signal N as this and N (POSIX.1-2017, XCU 2.8.2).
_SIGNAL_EXIT: Final = 128
#: Of a command in an error's text.
_SHOWN_CHARACTERS: Final = 120
#: For the removal of pyinfra's askpass file on the way out.
_REMOVAL_SECONDS: Final = 5.0


class AgentData(TypedDict, total=False):
    """The host data that this connector reads."""

    agent_host: str
    agent_port: int
    agent_public_key: str
    agent_trust: str
    agent_connect_timeout: int
    agent_resume_timeout: int
    agent_home: str


_DATA_META: Final = {
    "agent_host": DataMeta("Address or name of the agent"),
    "agent_port": DataMeta("TCP port of the agent", DEFAULT_PORT),
    "agent_public_key": DataMeta("Key line of the agent (`pyinfra-agent key` prints it); beats known_agents"),
    "agent_trust": DataMeta("`accept-new` pins an unknown agent's key at first use, `strict` refuses it", "accept-new"),
    "agent_connect_timeout": DataMeta("Seconds for a connection to be accepted and welcomed", int(CONNECT_SECONDS)),
    "agent_resume_timeout": DataMeta("Seconds in which a lost connection may be resumed", int(RESUME_SECONDS)),
    "agent_home": DataMeta(
        "Directory of this controller's key and known_agents"
        " (default: $PYINFRA_AGENT_HOME, else $XDG_CONFIG_HOME/pyinfra-agent, else ~/.config/pyinfra-agent)"
    ),
}


class AgentConnector(BaseConnector):
    """The ``@agent`` connector executes on machines that run the pyinfra agent, a small daemon.

    A command or a small file takes one round trip, over a connection that survives a bad network.

    .. code:: shell

        # A private agent on this machine, for a first try and for tests
        pyinfra @agent/loopback server.shell "uname -a"

        # A machine on which `pyinfra-agent serve` runs
        pyinfra @agent/web1.example.com files.put site.conf /etc/site.conf

        # Another port; an IPv6 address
        pyinfra @agent/web1.example.com:7964,@agent/[2001:db8::1]:7963 fact server.LinuxName
    """

    __examples_doc__ = """
    .. code:: python

        # inventory.py
        hosts = [
            "@agent/web1.example.com",
            ("@agent/web2", {"agent_host": "10.0.0.2", "agent_public_key": "pyinfra-agent-key AAAA..."}),
        ]
    """

    handles_execution = True

    data_cls = AgentData
    data_meta = _DATA_META
    data: AgentData

    _client: AgentClient | None = None
    _loopback: LoopbackAgent | None = None

    @override
    @staticmethod
    def make_names_data(name: str | None = None) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        try:
            parsed = parse_agent_name(name)
        except BadAgentName as error:
            raise InventoryError(str(error)) from None
        if parsed.kind is NameKind.AGENT:
            yield f"@agent/{name}", {"agent_host": parsed.host, "agent_port": parsed.port}, ["agent"]
        elif parsed.kind is NameKind.LOOPBACK:
            yield "@agent/loopback", {}, ["agent"]
        else:
            shown = f"@agent/{name}" if name else "@agent"
            raise InventoryError(
                f"{shown} asks to find agents, which this version cannot: name each, @agent/HOST or @agent/HOST:PORT"
            )

    # --- connecting ---

    @override
    def connect(self) -> None:
        self._close()
        try:
            self._client = self._make_client()
            self._client.connect()
        except (AgentError, UntrustedAgent, IdentityError, BadAgentName) as error:
            self._close()
            raise ConnectError(str(error)) from error
        except BaseException:
            self._close()
            raise

    def _make_client(self) -> AgentClient:
        # Not a method: the connection holds it, and would keep this object, and so itself, alive.
        notify = partial(_notify, self.host.print_prefix)
        seconds = {
            "connect_seconds": float(self.data["agent_connect_timeout"]),
            "resume_seconds": float(self.data["agent_resume_timeout"]),
        }
        host, port = self._address()
        if self._is_loopback():
            self._loopback = agent = start_loopback()
            # Its key came over a pipe: no other pin is needed, and known_agents is not touched.
            return AgentClient(
                _LOOPBACK_HOST,
                agent.port,
                identity=agent.identity,
                check_key=key_checker(agent_home(), _LOOPBACK_HOST, agent.port, "strict", agent.key_line),
                notify=notify,
                **seconds,
            )
        pin_name(host, port)  # raises what the checker would raise in the middle of a handshake
        home = agent_home(self.data["agent_home"])
        check_key = key_checker(home, host, port, self.data["agent_trust"], self.data["agent_public_key"])
        return AgentClient(host, port, identity=load_or_create(home), check_key=check_key, notify=notify, **seconds)

    def _is_loopback(self) -> bool:
        return self.host.name == "@agent/loopback" and not self.data["agent_host"]

    def _address(self) -> tuple[str, int]:
        return self.data["agent_host"] or "", self.data["agent_port"]

    @override
    def disconnect(self) -> None:
        # pyinfra removes its askpass file after this call, by a command: it has to happen before.
        if self._client is not None and self._client.is_connected:
            with gevent.Timeout(_REMOVAL_SECONDS, False):
                remove_any_sudo_askpass_file(self.host)
        self._close()

    def _close(self) -> None:
        client, self._client = self._client, None
        loopback, self._loopback = self._loopback, None
        if client is not None:
            client.close()
        if loopback is not None:
            loopback.stop()

    def _connected(self) -> AgentClient:
        if self._client is None:
            raise AgentError(f"{self.host.name} is not connected: connect to it first")
        return self._client

    # --- commands ---

    @override
    def run_shell_command(
        self,
        command: StringCommand,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> tuple[bool, CommandOutput]:
        client = self._connected()
        get_pty = arguments.pop("_get_pty", False)
        timeout = arguments.pop("_timeout", None)
        success_exit_codes = arguments.pop("_success_exit_codes", None)
        stdin = stdin_source(arguments.pop("_stdin", None))

        def execute_command() -> tuple[int, CommandOutput]:
            invocation = build_invocation(self.state, self.host, command, arguments)
            logger.debug("Running command on %s: (pty=%s) %s", self.host.name, get_pty, invocation.masked)
            if print_input:
                echo(f"{self.host.print_prefix}>>> {invocation.masked}", err=True)
            output = LazyCommandOutput()
            printer = LinePrinter(self.host.print_prefix) if print_output else None

            def on_output(stream: Any, data: bytes) -> None:  # noqa: ANN401 - one of the two stream names
                output.feed(stream, data)
                if printer is not None:
                    printer.feed(stream, data)

            masked = invocation.masked
            shown = masked if len(masked) <= _SHOWN_CHARACTERS and masked.isprintable() else "the command"
            ended = client.run(
                invocation.argv,
                env=invocation.env,
                stdin=stdin,
                pty=PtySize() if get_pty else None,
                timeout_seconds=timeout,
                on_output=on_output,
                what=shown,
            )
            if printer is not None:
                printer.finish()
            if ended.reason == "timeout":
                raise CommandTimeout(f"{shown} did not end within {timeout} s and was killed", output)
            logger.debug("Command exit status: %s", exit_status(ended))
            return exit_status(ended), output

        return_code, combined_output = execute_command_with_sudo_retry(
            self.host, cast("ConnectorArguments", arguments), execute_command
        )
        if success_exit_codes:
            return return_code in success_exit_codes, combined_output
        return return_code == 0, combined_output

    # --- files ---

    @override
    def put_file(
        self,
        filename_or_io: str | IOBase,
        remote_filename: str,
        remote_temp_filename: str | None = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> bool:
        client = self._connected()
        route = write_route(self.state, self.host, remote_filename, _auth(arguments), client.user)
        client.put(local_chunks(cast("str | IO[Any]", filename_or_io)), route.path, argv=route.argv, env=route.env)
        if print_output:
            echo(f"{self.host.print_prefix}file uploaded: {remote_filename}", err=True)
        return True

    @override
    def get_file(
        self,
        remote_filename: str,
        filename_or_io: str | IOBase,
        remote_temp_filename: str | None = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> bool:
        client = self._connected()
        route = read_route(self.state, self.host, remote_filename, _auth(arguments), client.user)
        with local_sink(cast("str | IO[Any]", filename_or_io)) as write:
            client.get(route.path, write, argv=route.argv, env=route.env, nonce=route.nonce)
        if print_output:
            echo(f"{self.host.print_prefix}file downloaded: {remote_filename}", err=True)
        return True


def _notify(prefix: str, text: str) -> None:
    logger.warning(f"{prefix}{text}")


def exit_status(ended: ExecResult) -> int:
    """Return what a shell would report: the exit status, or 128 and the signal's number."""
    if ended.exit is not None:
        return ended.exit
    return _SIGNAL_EXIT + (ended.signal or 0)


def _auth(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return *arguments* without those that speak of a command's run and not of who runs it."""
    control = ("_get_pty", "_timeout", "_stdin", "_success_exit_codes", "_env")
    return {name: value for name, value in arguments.items() if name not in control}
