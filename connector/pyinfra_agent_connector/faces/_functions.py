"""The functions of a connector for pyinfra 1 and 2, which differ in where their helpers are and in nothing else.

Parameters and results are those of pyinfra's "Writing Connectors".  Arguments have no underscore there (`sudo`, `env`);
what `use_sudo_password` means, and when to ask for a password, the installed pyinfra knows.

The object of a host is kept in `host.connector_data`, which is the connector's own, and not in `host.connection`: a
reboot sets that to None without a call of `disconnect`.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from .._inventory import names_data

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from typing import IO

    from pyinfra.api import Host, State, StringCommand

    from .._host import AgentHost
    from .._output import LazyCommandOutput

__all__ = [
    "check_can_rsync",
    "connect",
    "disconnect",
    "get_file",
    "make_names_data",
    "put_file",
    "rsync",
    "run_shell_command",
]

_DATA_KEY: Final = "agent_host_object"


def _load_util() -> Any:  # noqa: ANN401 - a module of another generation than the one that types are checked with
    try:
        return importlib.import_module("pyinfra.connectors.util")
    except ImportError:
        return importlib.import_module("pyinfra.api.connectors.util")


_util: Final = _load_util()


def make_names_data(hostname: str | None = None) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Yield name, data and groups of each host that *hostname*, what stands after `@agent/`, asks for.

    Raises:
        InventoryError: it has no meaning.
    """
    return names_data(hostname)


def connect(state: State, host: Host) -> AgentHost:
    """Connect to the host's agent, anew if there is a connection.

    Raises:
        ConnectError: with one line that says what to do.
    """
    agent = host.connector_data.get(_DATA_KEY)
    if agent is None:
        # Here, and not above: pyinfra loads every connector in every run, also where no host needs this one.
        from .._host import AgentHost

        agent = host.connector_data[_DATA_KEY] = AgentHost(host, partial(_wrap, state, host))
    agent.connect(cast("Any", host.data).get)
    return cast("AgentHost", agent)


def disconnect(state: State, host: Host) -> None:
    """Disconnect, and do what pyinfra leaves undone after a connector that has this function."""
    agent = host.connector_data.get(_DATA_KEY)
    if agent is not None:
        agent.disconnect(_util.remove_any_sudo_askpass_file)
    cast("Any", host).connection = None
    cast("Any", state).trigger_callbacks("host_disconnect", host)


def run_shell_command(
    state: State,
    host: Host,
    command: StringCommand | str,
    get_pty: bool = False,
    timeout: float | None = None,
    stdin: object = None,
    success_exit_codes: Collection[int] | None = None,
    print_output: bool = False,
    print_input: bool = False,
    return_combined_output: bool = False,
    use_sudo_password: Any = False,  # noqa: ANN401 - True, a password, or a function that returns one
    **command_kwargs: Any,
) -> tuple[bool, list[tuple[str, str]]] | tuple[bool, list[str], list[str]]:
    """Run *command* and wait for its end.

    Returns:
        `(status, stdout lines, stderr lines)`; with *return_combined_output* `(status, [(stream, line), ...])`.

    Raises:
        OSError: with one line that says why; TimeoutError if the time was over.
    """
    # A retry sets it: as an argument of its own it would come twice.
    command_kwargs["use_sudo_password"] = use_sudo_password
    prepared = _agent(host).command(
        command,
        get_pty=get_pty,
        timeout=timeout,
        stdin=stdin,
        success_exit_codes=success_exit_codes,
        print_output=print_output,
        print_input=print_input,
        # pyinfra prints lines as they are, which lone surrogates would end with an exception.
        errors="backslashreplace",
    )

    exit_code, combined_output = _run_with_sudo_retry(host, command_kwargs, prepared.run)
    status = prepared.is_success(exit_code)
    if return_combined_output:
        return status, combined_output
    stdout, stderr = _util.split_combined_output(combined_output)
    return status, stdout, stderr


def put_file(
    state: State,
    host: Host,
    filename_or_io: str | os.PathLike[str] | IO[Any],
    remote_filename: str,
    print_output: bool = False,
    print_input: bool = False,
    **command_kwargs: Any,
) -> bool:
    """Upload a local file or IO object: True.

    Raises:
        OSError: with one line that says why.
    """
    transfer = _agent(host).put_file(filename_or_io, remote_filename, print_output=print_output)
    status, _ = _run_with_sudo_retry(host, command_kwargs, transfer.run)
    transfer.require_success(status)
    return True


def get_file(
    state: State,
    host: Host,
    remote_filename: str,
    filename_or_io: str | os.PathLike[str] | IO[Any],
    print_output: bool = False,
    print_input: bool = False,
    **command_kwargs: Any,
) -> bool:
    """Download a file to a local one or an IO object: True.

    Raises:
        OSError: with one line that says why.
    """
    transfer = _agent(host).get_file(remote_filename, filename_or_io, print_output=print_output)
    status, _ = _run_with_sudo_retry(host, command_kwargs, transfer.run)
    transfer.require_success(status)
    return True


def check_can_rsync(host: Host) -> None:
    """Return if there is an rsync on this machine.

    Raises:
        NotImplementedError: there is none; this is what pyinfra expects.
    """
    _agent(host).check_can_rsync()


def rsync(
    state: State,
    host: Host,
    src: str,
    dest: str,
    flags: Iterable[str],
    print_output: bool = False,
    print_input: bool = False,
    **command_kwargs: Any,
) -> bool:
    """Bring the local *src* to *dest* on the host by rsync: True.

    Raises:
        OSError: with what rsync said.
    """
    run = _agent(host).rsync(src, dest, flags, print_output=print_output, print_input=print_input)
    exit_code, combined_output = _run_with_sudo_retry(host, command_kwargs, run)
    if exit_code != 0:
        _, stderr = _util.split_combined_output(combined_output)
        raise OSError("\n".join(stderr) or f"rsync ended with exit status {exit_code}")
    return True


def _run_with_sudo_retry(
    host: Host,
    command_kwargs: dict[str, Any],
    run: Callable[[Mapping[str, Any]], tuple[int, LazyCommandOutput]],
) -> tuple[int, list[tuple[str, str]]]:
    def execute_command() -> tuple[int, list[tuple[str, str]]]:
        status, output = run(_prefixed(command_kwargs))
        return status, [(line.buffer_name, line.line) for line in output.combined_lines]

    return cast(
        "tuple[int, list[tuple[str, str]]]",
        _util.execute_command_with_sudo_retry(host, command_kwargs, execute_command),
    )


def _agent(host: Host) -> AgentHost:
    agent = host.connector_data.get(_DATA_KEY)
    if agent is None:
        from .._errors import AgentError

        raise AgentError(f"{host.name} is not connected: connect to it first")
    return cast("AgentHost", agent)


def _prefixed(command_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments under the names that pyinfra 3 gave them, which the core uses."""
    # The path that other connectors copy through.
    arguments = {f"_{name}": value for name, value in command_kwargs.items() if name != "remote_temp_filename"}
    if not arguments.get("_sudo"):
        # pyinfra would ask for a password, and hand it to a command that does not need it.
        arguments.pop("_use_sudo_password", None)
    return arguments


def _wrap(state: State, host: Host, command: StringCommand | str, arguments: Mapping[str, Any]) -> StringCommand:
    kwargs = {name.removeprefix("_"): value for name, value in arguments.items()}
    return cast("StringCommand", _util.make_unix_command_for_host(state, host, command, **kwargs))
