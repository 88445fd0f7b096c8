"""The face for pyinfra 3: a connector class.  It translates arguments, results and errors, and nothing else."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from pyinfra.connectors.base import BaseConnector, DataMeta
from pyinfra.connectors.util import (
    execute_command_with_sudo_retry,
    make_unix_command_for_host,
    remove_any_sudo_askpass_file,
)
from typing_extensions import TypedDict, override

from .._inventory import names_data
from .._settings import DATA_KEYS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from io import IOBase
    from typing import IO

    from pyinfra.api import Host, State, StringCommand
    from pyinfra.api.arguments import ConnectorArguments
    from pyinfra.connectors.util import CommandOutput

    from .._prepared import PreparedTransfer

__all__ = ["AgentConnector", "AgentData"]


class AgentData(TypedDict, total=False):
    """The host data that this connector reads."""

    agent_host: str
    agent_port: int
    agent_public_key: str
    agent_trust: str
    agent_connect_timeout: int
    agent_resume_timeout: int
    agent_put: str
    agent_home: str
    agent_found_by: str
    agent_announced_fingerprint: str


_DATA_META: Final = {name: DataMeta(key.description, key.default) for name, key in DATA_KEYS.items()}


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

    def __init__(self, state: State, host: Host) -> None:
        # Here, and not above: pyinfra loads every connector in every run, also where no host needs this one.
        from .._host import AgentHost

        super().__init__(state, host)
        self._agent = AgentHost(host, partial(_wrap, state, host))

    @override
    @staticmethod
    def make_names_data(name: str | None = None) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        return names_data(name)

    @override
    def connect(self) -> None:
        self._agent.connect(self.data.get)

    @override
    def disconnect(self) -> None:
        self._agent.disconnect(remove_any_sudo_askpass_file)
        # The first releases leave it as it is, and would not connect again.
        self.host.connected = False

    @override
    def run_shell_command(
        self,
        command: StringCommand,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> tuple[bool, CommandOutput]:
        prepared = self._agent.command(
            command,
            get_pty=arguments.pop("_get_pty", False),
            timeout=arguments.pop("_timeout", None),
            stdin=arguments.pop("_stdin", None),
            success_exit_codes=arguments.pop("_success_exit_codes", None),
            print_output=print_output,
            print_input=print_input,
        )
        status, output = execute_command_with_sudo_retry(
            self.host,
            cast("ConnectorArguments", arguments),
            partial(prepared.run, arguments),
        )
        return prepared.is_success(status), output

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
        local = cast("str | IO[Any]", filename_or_io)
        self._transfer(self._agent.put_file(local, remote_filename, print_output=print_output), arguments)
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
        local = cast("str | IO[Any]", filename_or_io)
        self._transfer(self._agent.get_file(remote_filename, local, print_output=print_output), arguments)
        return True

    def _transfer(self, transfer: PreparedTransfer, arguments: dict[str, Any]) -> None:
        status, _ = execute_command_with_sudo_retry(
            self.host,
            cast("ConnectorArguments", arguments),
            partial(transfer.run, arguments),
        )
        transfer.require_success(status)

    @override
    def check_can_rsync(self) -> None:
        self._agent.check_can_rsync()

    @override
    def rsync(
        self,
        src: str,
        dest: str,
        flags: Iterable[str],
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> bool:
        run = self._agent.rsync(src, dest, flags, print_output=print_output, print_input=print_input)
        status, output = execute_command_with_sudo_retry(
            self.host,
            cast("ConnectorArguments", arguments),
            partial(run, arguments),
        )
        if status != 0:
            raise OSError(output.stderr or f"rsync ended with exit status {status}")
        return True


def _wrap(state: State, host: Host, command: StringCommand | str, arguments: Mapping[str, Any]) -> StringCommand:
    return make_unix_command_for_host(state, host, cast("StringCommand", command), **arguments)
