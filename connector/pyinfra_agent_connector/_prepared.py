"""A command or a transfer that is ready to run on a host: once, or once more if sudo wants a password."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Final

from pyinfra import logger

from pyinfra_agent_protocol import PtySize

from ._argv import BadCommand, Invocation, build_invocation
from ._errors import AgentError, CommandTimeout, ConnectionLost, Refused
from ._output import LazyCommandOutput, LinePrinter, echo
from ._signals import signal_name
from ._stdin import typed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from pyinfra.api import Host, StringCommand

    from pyinfra_agent_protocol import ExecResult

    from ._argv import Wrap
    from .client import AgentClient

__all__ = ["PreparedCommand", "PreparedTransfer", "boot_id", "exit_status"]

#: What pyinfra's reboot takes for a connection that was lost.
_LOST_EXIT: Final = -1
#: What an agent refuses everything with that is about to end (SPEC.md section 10).
_STOPPING: Final = "stopping"
#: What stands before the words of another user's command in the agent's refusal.
_AS_OTHER: Final = "as the other user: "
#: A shell reports death by signal N as this and N (POSIX.1-2017, XCU 2.8.2).
_SIGNAL_EXIT: Final = 128
#: Of a command in an error's text.
_SHOWN_CHARACTERS: Final = 120
#: With these a command runs as somebody else than the agent does.
_OTHER_USER: Final = ("_sudo", "_su_user", "_doas", "_dzdo")
#: What `_get_pty` is. Nobody resizes it, so that programs which believe these variables are right.
_TERMINAL: Final = PtySize()
_TERMINAL_VARIABLES: Final = {"LINES": str(_TERMINAL.rows), "COLUMNS": str(_TERMINAL.columns)}


@dataclass(frozen=True, slots=True)
class PreparedCommand:
    """A command to run on a host, and to run once more if sudo wants a password; made by `AgentHost.command`."""

    host: Host
    client: AgentClient
    wrap: Wrap
    command: StringCommand | str
    _: KW_ONLY
    on_reboot: Callable[[str], None] | None
    get_pty: bool
    timeout: float | None
    stdin: bytes | Iterable[bytes] | None
    success_exit_codes: Collection[int]
    print_output: bool
    print_input: bool
    errors: str

    def run(self, arguments: Mapping[str, Any]) -> tuple[int, LazyCommandOutput]:
        """Run it once; return what a shell would report, and the output.

        Args:
            arguments: those that say as whom and where (`_sudo`, `_env`, `_chdir`, ...); the second run has others.

        Raises:
            OSError: as `AgentClient.run`.
            CommandTimeout: the time was over.
        """
        if self.on_reboot is None:
            return self._run(arguments)
        last_boot = boot_id(self.client)
        status, output = self._run(arguments)
        if self.is_success(status):
            self.on_reboot(last_boot)
        return status, output

    def _run(self, arguments: Mapping[str, Any]) -> tuple[int, LazyCommandOutput]:
        prefix = self.host.print_prefix
        invocation = self._invocation(arguments)
        logger.debug("Running command on %s: (pty=%s) %s", self.host.name, self.get_pty, invocation.masked)
        if self.print_input:
            echo(f"{prefix}>>> {invocation.masked}", err=True)
        output = LazyCommandOutput(errors=self.errors)
        printer = LinePrinter(prefix) if self.print_output else None

        def on_output(stream: Any, data: bytes) -> None:  # noqa: ANN401 - one of the two stream names
            output.feed(stream, data)
            if printer is not None:
                printer.feed(stream, data)

        masked = invocation.masked
        shown = masked if len(masked) <= _SHOWN_CHARACTERS and masked.isprintable() else "the command"
        stdin = typed(self.stdin, by_sudo=bool(arguments.get("_sudo"))) if self.get_pty else self.stdin
        expects_loss = _LOST_EXIT in self.success_exit_codes
        try:
            ended = self.client.run(
                invocation.argv,
                env=invocation.env | _TERMINAL_VARIABLES if self.get_pty else invocation.env,
                stdin=stdin if invocation.script is None else invocation.script,
                pty=_TERMINAL if self.get_pty else None,
                timeout_seconds=self.timeout,
                on_output=on_output,
                expects_loss=expects_loss,
                what=shown,
                label=masked,
            )
        except ConnectionLost as error:
            if expects_loss and error.was_sent:
                logger.debug("The connection ended with the command: %s", error)
                return _LOST_EXIT, output
            raise
        except CommandTimeout as error:
            error.output = output
            raise
        finally:
            if printer is not None:
                printer.finish()
        if ended.signal is not None:
            output.signal_name = signal_name(ended.signal)
        if ended.reason == "timeout":
            raise CommandTimeout(f"{shown} did not end within {self.timeout} s{self._killed(arguments)}", output)
        logger.debug("Command exit status: %s (%s)", exit_status(ended), output.signal_name or "by itself")
        return exit_status(ended), output

    def _invocation(self, arguments: Mapping[str, Any]) -> Invocation:
        stdin_is_free = self.stdin is None and not self.get_pty
        try:
            return build_invocation(self.wrap, self.command, arguments, stdin_is_free=stdin_is_free)
        except BadCommand as error:
            raise AgentError(f"{self.client.endpoint}: {error}") from None

    def _killed(self, arguments: Mapping[str, Any]) -> str:
        """Return what may be said of a command whose time was over."""
        if self.client.user != "root" and any(arguments.get(name) for name in _OTHER_USER):
            return f": {self.client.user}, who runs the agent, may have been unable to kill all that another user runs"
        return " and was killed"

    def is_success(self, status: int) -> bool:
        """Return whether pyinfra counts *status* as a success."""
        return status in self.success_exit_codes


class PreparedTransfer:
    """A transfer to run, and to run once more if sudo wants a password; made by `AgentHost`."""

    def __init__(self, transfer: Callable[[Mapping[str, Any]], None], *, is_repeatable: bool) -> None:
        self._transfer = transfer
        self._is_repeatable = is_repeatable
        self._error: Refused | None = None

    def run(self, arguments: Mapping[str, Any]) -> tuple[int, LazyCommandOutput]:
        """Run it once; return 0, or 1 and what the other user's command said.

        Args:
            arguments: those that say as whom (`_sudo`, ...); the second run has others.

        Raises:
            OSError: with one line that says why; it would not help to run it again.
        """
        output = LazyCommandOutput()
        try:
            self._transfer(arguments)
        except Refused as error:
            if error.code != "helper" or not self._is_repeatable:
                raise
            self._error = error
            output.feed("stderr", str(error).rpartition(_AS_OTHER)[2].encode("utf-8", "surrogateescape") + b"\n")
            return 1, output
        return 0, output

    def require_success(self, status: int) -> None:
        """Raise the error of the last run unless *status* is 0."""
        if status and self._error is not None:
            raise self._error


def exit_status(ended: ExecResult) -> int:
    """Return what a shell would report: the exit status, or 128 and the signal's number."""
    if ended.exit is not None:
        return ended.exit
    return _SIGNAL_EXIT + (ended.signal or 0)


def boot_id(client: AgentClient, *, expects_loss: bool = False) -> str:
    """Return what is another after each boot of the agent's machine; "" if the agent does not say.

    Raises:
        Refused: the agent is stopping, and will say when it is back.
    """
    try:
        told = client.info(expects_loss=expects_loss).get("boot_id")
    except Refused as error:
        if error.code == _STOPPING:
            raise
        return ""
    return told if isinstance(told, str) else ""
