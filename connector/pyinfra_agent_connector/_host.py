"""One host of pyinfra's inventory and the agent that it is reached by: what the faces of all generations share.

It knows pyinfra's words (`_sudo`, `_stdin`, `StringCommand`), and none of the places and shapes that differ
between generations: a face translates those.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.monkey import get_original
from pyinfra import logger
from pyinfra.api.exceptions import ConnectError, PyinfraError

from ._console import guard_log
from ._errors import AgentError
from ._files import is_rewindable, local_chunks, local_sink
from ._identity import IdentityError, agent_home, load_or_create
from ._interrupt import interrupts
from ._known import UntrustedAgent
from ._loopback import LoopbackAgent, start_loopback
from ._names import BadAgentName, NameKind, parse_agent_name, pin_name
from ._output import LazyCommandOutput, echo, shown
from ._prepared import PreparedCommand, PreparedTransfer, boot_id
from ._rsync import Rsync, check_can_rsync, wait_for_rsyncs
from ._settings import Settings
from ._stdin import stdin_source
from ._transfers import read_route, write_route
from ._trust import AgentTrust
from .client import AgentClient

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import IO

    from pyinfra.api import Host, StringCommand

    from ._argv import Wrap

__all__ = ["AgentHost"]

#: The commands of pyinfra's reboot, of its first releases and of 3.10.
_REBOOTS: Final = frozenset({"reboot", "( sleep 1 && reboot ) </dev/null >/dev/null 2>&1 &"})

_LOOPBACK_HOST: Final = "127.0.0.1"
#: Of what a target said, in an error of pyinfra's.
_QUOTED_CHARACTERS: Final = 500
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
        if self._last_boot and self._last_boot == boot_id(client, expects_loss=True):
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
            with local_sink(filename_or_io, _close_in_thread) as write:
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


def _close_in_thread(descriptor: int) -> None:
    """Close *descriptor*, without waiting for what that takes unless no thread can be started."""
    close = get_original("os", "close")
    try:
        get_original("_thread", "start_new_thread")(close, (descriptor,))
    except RuntimeError:
        close(descriptor)


def _auth(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return *arguments* without those that speak of a command's run and not of who runs it."""
    control = ("_get_pty", "_timeout", "_stdin", "_success_exit_codes", "_env")
    return {name: value for name, value in arguments.items() if name not in control}
