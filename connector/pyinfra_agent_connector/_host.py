"""One host of pyinfra's inventory and the agent that it is reached by: what the faces of all generations share.

It knows pyinfra's words (`_sudo`, `_stdin`, `StringCommand`), and none of the places and shapes that differ
between generations: a face translates those.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import gevent
from pyinfra import logger
from pyinfra.api.exceptions import ConnectError, PyinfraError

from pyinfra_agent_protocol import PtySize

from ._argv import BadCommand, Invocation, build_invocation
from ._console import guard_log
from ._errors import AgentError, CommandTimeout, ConnectionLost, Refused
from ._files import is_rewindable, local_chunks, local_sink
from ._identity import IdentityError, agent_home, load_or_create
from ._interrupt import interrupts
from ._known import UntrustedAgent
from ._loopback import LoopbackAgent, start_loopback
from ._names import BadAgentName, NameKind, parse_agent_name, pin_name
from ._output import LazyCommandOutput, LinePrinter, echo, shown
from ._rsync import Rsync, check_can_rsync, wait_for_rsyncs
from ._settings import Settings
from ._signals import signal_name
from ._stdin import stdin_source, typed
from ._transfers import read_route, write_route
from ._trust import AgentTrust
from .client import AgentClient

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import IO

    from pyinfra.api import Host, StringCommand

    from pyinfra_agent_protocol import ExecResult

    from ._argv import Wrap

__all__ = ["AgentHost", "PreparedCommand", "PreparedTransfer", "exit_status"]

#: What pyinfra's reboot takes for a connection that was lost.
_LOST_EXIT: Final = -1
#: The commands of pyinfra's reboot, of its first releases and of 3.10.
_REBOOTS: Final = frozenset({"reboot", "( sleep 1 && reboot ) </dev/null >/dev/null 2>&1 &"})

#: What stands before the words of another user's command in the agent's refusal.
_AS_OTHER: Final = "as the other user: "

_LOOPBACK_HOST: Final = "127.0.0.1"
#: A shell reports death by signal N as this and N (POSIX.1-2017, XCU 2.8.2).
_SIGNAL_EXIT: Final = 128
#: Of a command in an error's text.
_SHOWN_CHARACTERS: Final = 120
#: Of what a target said, in an error of pyinfra's.
_QUOTED_CHARACTERS: Final = 500
#: With these a command runs as somebody else than the agent does.
_OTHER_USER: Final = ("_sudo", "_su_user", "_doas", "_dzdo")
#: What `_get_pty` is. Nobody resizes it, so that programs which believe these variables are right.
_TERMINAL: Final = PtySize()
_TERMINAL_VARIABLES: Final = {"LINES": str(_TERMINAL.rows), "COLUMNS": str(_TERMINAL.columns)}
#: For the removal of pyinfra's askpass file on the way out.
_REMOVAL_SECONDS: Final = 5.0
#: For the same after Ctrl-C.
_HURRIED_REMOVAL_SECONDS: Final = 0.5


class AgentHost:
    """A host, and its agent once `connect` has returned.

    Args:
        host: pyinfra's.
        wrap: makes the command that pyinfra would hand to a shell; see `_argv.Wrap`.
    """

    def __init__(self, host: Host, wrap: Wrap) -> None:
        self._host = host
        self._wrap = partial(_wrapped, wrap, host.name)
        self._client: AgentClient | None = None
        self._loopback: LoopbackAgent | None = None
        self._put_in_place = False
        self._last_boot = ""

    # --- connecting ---

    def connect(self, get: Callable[[str], Any]) -> None:
        """Connect, or connect anew, as the host data that *get* finds says.

        After a command of pyinfra's reboot it fails until the machine has rebooted. pyinfra tries again then, and most
        releases of it take any connection for the end of the wait.

        Raises:
            ConnectError: with one line that says what to do.
        """
        guard_log(logger)
        self.close()
        try:
            settings = Settings.read(get)
            self._put_in_place = settings.put_in_place
            self._client = self._make_client(settings)
            self._client.connect()
            self._refuse_last_boot(self._client)
        except (AgentError, UntrustedAgent, IdentityError, BadAgentName) as error:
            self.close()
            raise ConnectError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _refuse_last_boot(self, client: AgentClient) -> None:
        """Raise if the machine is still to reboot."""
        if self._last_boot and self._last_boot == _boot_id(client, expects_loss=True):
            raise AgentError(f"{client.endpoint} has not rebooted yet: connect to it again when it has")
        self._last_boot = ""

    def _note_last_boot(self, boot_id: str) -> None:
        self._last_boot = boot_id

    def _make_client(self, settings: Settings) -> AgentClient:
        # Not a method: the connection holds it, and would keep this object, and so itself, alive.
        notify = partial(_notify, self._host.print_prefix)
        make = partial(
            AgentClient,
            connect_seconds=settings.connect_seconds,
            resume_seconds=settings.resume_seconds,
            notify=notify,
        )
        if self._host.name == "@agent/loopback" and not settings.host:
            self._loopback = agent = start_loopback()
            # Its key came over a pipe: no other pin is needed, and known_agents is not touched.
            trust = AgentTrust(agent_home(), _LOOPBACK_HOST, agent.port, "strict", agent.key_line)
            return make(_LOOPBACK_HOST, agent.port, identity=agent.identity, check_key=trust.check)
        host, port = settings.host, settings.port
        pin_name(host, port)  # raises what the checker would raise in the middle of a handshake
        home = agent_home(settings.home)
        policy = settings.trust or ("pinned" if settings.found_by else "accept-new")
        named = (host, port)
        called = [host]
        parsed = parse_agent_name(self._host.name.removeprefix("@agent/"))
        if settings.found_by:
            # Its address is only where it was seen: its pin is kept under the name that discovery gave it.
            named = (parsed.host, parsed.port)
            called = [parsed.host]
        elif parsed.kind is NameKind.AGENT:
            called.append(parsed.host)  # the user wrote both: the name in the inventory, and where it is
        trust = AgentTrust(home, *named, policy, settings.public_key, called=called)
        alias = settings.announced_fingerprint if settings.found_by == "mdns" else ""
        make = partial(make, alias=alias, check_key=trust.check, learn_key=trust.learn)
        return make(host, port, identity=load_or_create(home))

    def disconnect(self, remove_askpass_file: Callable[[Host], None]) -> None:
        """Leave: nothing of ours stays on the target, and it takes seconds at most.

        Args:
            remove_askpass_file: pyinfra's own, which runs a command; pyinfra calls it later than it can work.
        """
        if self._client is not None and self._client.is_connected:
            wait_for_rsyncs(self._client)
            seconds = _HURRIED_REMOVAL_SECONDS if interrupts.is_interrupted else _REMOVAL_SECONDS
            with gevent.Timeout(seconds, False), interrupts.leaving():
                try:
                    remove_askpass_file(self._host)
                except OSError as error:
                    logger.debug("Could not remove the askpass file on %s: %s", self._host.name, error)
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one; harmless at any time."""
        client, self._client = self._client, None
        loopback, self._loopback = self._loopback, None
        if client is not None:
            client.close()
        if loopback is not None:
            loopback.stop()

    @property
    def client(self) -> AgentClient:
        """The client of the agent.

        Raises:
            AgentError: the host is not connected.
        """
        if self._client is None:
            raise AgentError(f"{self._host.name} is not connected: connect to it first")
        return self._client

    # --- commands ---

    def command(
        self,
        command: StringCommand | str,
        *,
        get_pty: bool = False,
        timeout: float | None = None,
        stdin: object = None,
        success_exit_codes: Collection[int] | None = None,
        print_output: bool = False,
        print_input: bool = False,
        errors: str = "surrogateescape",
    ) -> PreparedCommand:
        """Return *command*, ready to run with pyinfra's arguments of the same names.

        Args:
            command: pyinfra's.
            get_pty: in a terminal.
            timeout: seconds after which it is killed.
            stdin: see `stdin_source`.
            success_exit_codes: those that are a success, 0 if there are none.  -1 among them means that the command is
                to end the connection, as `reboot` does: then -1 is the answer to that, at once.
            print_output: show lines as they arrive.
            print_input: show the command.
            errors: how output that is not UTF-8 becomes text, as for `bytes.decode`.

        Raises:
            AgentError: the host is not connected.
            StdinError: *stdin* is of a type that cannot be sent.
        """
        # A loopback agent does not outlive a reboot, and neither does whoever waits for it.
        is_reboot = self._loopback is None and str(command) in _REBOOTS
        return PreparedCommand(
            self._host,
            self.client,
            self._wrap,
            command,
            on_reboot=self._note_last_boot if is_reboot else None,
            get_pty=bool(get_pty),
            timeout=timeout,
            # Once: sudo may want a second run with the same input.
            stdin=stdin_source(stdin),
            success_exit_codes=success_exit_codes or (0,),
            print_output=print_output,
            print_input=print_input,
            errors=errors,
        )

    # --- files ---

    def put_file(
        self, filename_or_io: str | os.PathLike[str] | IO[Any], remote_filename: str, *, print_output: bool
    ) -> PreparedTransfer:
        """Return the upload of a local file or IO object, ready to run.

        Raises:
            AgentError: the host is not connected.
        """
        client = self.client

        def upload(arguments: Mapping[str, Any]) -> None:
            route = write_route(self._wrap, remote_filename, _auth(arguments), client.user)
            content = local_chunks(filename_or_io)
            client.put(content, route.path, argv=route.argv, env=route.env, in_place=self._put_in_place)
            if print_output:
                echo(f"{self._host.print_prefix}file uploaded: {remote_filename}", err=True)

        return PreparedTransfer(upload, is_repeatable=is_rewindable(filename_or_io))

    def get_file(
        self, remote_filename: str, filename_or_io: str | os.PathLike[str] | IO[Any], *, print_output: bool
    ) -> PreparedTransfer:
        """Return the download of a file to a local one or an IO object, ready to run.

        Raises:
            AgentError: the host is not connected.
        """
        client = self.client

        def download(arguments: Mapping[str, Any]) -> None:
            route = read_route(self._wrap, remote_filename, _auth(arguments), client.user)
            with local_sink(filename_or_io) as write:
                client.get(route.path, write, argv=route.argv, env=route.env, nonce=route.nonce)
            if print_output:
                echo(f"{self._host.print_prefix}file downloaded: {remote_filename}", err=True)

        return PreparedTransfer(download, is_repeatable=is_rewindable(filename_or_io))

    # --- rsync ---

    @staticmethod
    def check_can_rsync() -> None:
        """Return if there is an rsync on this machine.

        Raises:
            NotImplementedError: there is none; this is what pyinfra expects.
        """
        check_can_rsync()

    def rsync(
        self, src: str, dest: str, flags: Iterable[str], *, print_output: bool, print_input: bool
    ) -> Callable[[Mapping[str, Any]], tuple[int, LazyCommandOutput]]:
        """Return what brings the local *src* to *dest* once; like `PreparedCommand.run`, it takes arguments.

        Raises:
            AgentError: the host is not connected.
        """
        task = Rsync(str(src), str(dest), tuple(flags), self._host.print_prefix, print_output, print_input)
        return partial(task.run, self.client, self._wrap)


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
        boot_id = _boot_id(self.client)
        status, output = self._run(arguments)
        if self.is_success(status):
            self.on_reboot(boot_id)
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


def _boot_id(client: AgentClient, *, expects_loss: bool = False) -> str:
    """Return what is another after each boot of the agent's machine; "" if the agent does not say."""
    try:
        boot_id = client.info(expects_loss=expects_loss).get("boot_id")
    except Refused:
        return ""
    return boot_id if isinstance(boot_id, str) else ""


def _wrapped(wrap: Wrap, name: str, command: StringCommand | str, arguments: Mapping[str, Any]) -> StringCommand:
    """Call *wrap*, which first has a host make pyinfra's program for passwords, and may fail there.

    pyinfra's error quotes the host, ends the run for all hosts, and is printed as it is.
    """
    try:
        return wrap(command, arguments)
    except PyinfraError as error:
        text = str(error).strip()
        lines = text[:_QUOTED_CHARACTERS].split("\n") + ["..."] * (len(text) > _QUOTED_CHARACTERS)
        raise AgentError(f"{name}: {'; '.join(map(shown, lines))}") from None


def _notify(prefix: str, text: str) -> None:
    logger.warning(f"{prefix}{text}")


def _auth(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return *arguments* without those that speak of a command's run and not of who runs it."""
    control = ("_get_pty", "_timeout", "_stdin", "_success_exit_codes", "_env")
    return {name: value for name, value in arguments.items() if name not in control}
