"""One agent takes the place of another, and what a controller started does not notice.

The old agent closes its links, stops every reader, and says what it has: its state, as bytes in a memfd, and its
descriptors. All of it is put into the queue of a socket pair, whose one end is closed and whose other end travels:

- SIGUSR2 (`systemctl kill --kill-whom=main --signal=SIGUSR2 pyinfra-agent`): the agent executes itself in place and
  inherits the end. The process and its children stay, so exit statuses are as sure as ever, on every kernel;
- `systemctl restart` (SIGUSR1, by RestartKillSignal=): the agent gives the end to systemd's descriptor store and
  exits. Its successor gets it with its start. Commands are nobody's children then: `_exits`.

What is in a queue has one owner: whoever holds the end. Whoever receives it takes it out, and nobody else can. If a
successor fails before that, systemd still has the end for the next one.

Tried, and not taken: each descriptor in the store by itself. It needs a name and a message each, 2,000 of them for
500 commands; what is one too many is dropped without a word; and a successor that dies half way leaves them there,
with nothing that says which state they belonged to. A file with the state: outputs of commands do not belong on a
disk, and a second owner can find it.

For exit statuses on older kernels: the old agent stays behind as their parent, with a child that it makes the main
process. systemd takes no other main process (MAINPID=) while it stops one, and waits for the old one. Closing links
last, handing them over: keys and counters of a cipher in two processes are a risk for nothing, as a new link takes
less time than the start of a process.

A state that is not understood is refused (`take_over`): its sessions are unknown to the new agent, which tells their
controllers that the outcome is unknown; its commands live on, and their outputs are read and thrown away.
"""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket
import stat
import sys
from typing import TYPE_CHECKING, Final

import trio

from ._fdstore import DescriptorStore, listed_descriptors
from ._limits import restore_limit
from ._log import describe_failure, log
from ._saved import Descriptors, SavedStateInvalid, decode_agent, encode_agent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._saved import SavedAgent

__all__ = [
    "NAME",
    "REEXECUTE",
    "REPLACE",
    "Inheritance",
    "hold_signals",
    "inherit",
    "outputs_among",
    "pass_on",
    "take_over",
]

#: Says: hand over to a process that the service manager starts, and exit.
REPLACE: Final = signal.SIGUSR1
#: Says: hand over to this process, executed anew.
REEXECUTE: Final = signal.SIGUSR2

#: What the end is called in the descriptor store.
NAME: Final = "pyinfra-agent-handover"
_VARIABLE: Final = "PYINFRA_AGENT_HANDOVER_FD"
_GREETING: Final = b"pyinfra-agent handover"
_DESCRIPTORS_MOST: Final = 200  # in one message; Linux takes 253 (SCM_MAX_FD)
_STATE_MOST_BYTES: Final = 2**31


class Inheritance:
    """What a predecessor left: `state` is None if it was not understood.

    Attributes:
        descriptors: those of the state.
        outputs: descriptors that nobody knows, and from which commands' outputs may still have to be read.
    """

    def __init__(self, state: SavedAgent | None, descriptors: Descriptors, outputs: list[int]) -> None:
        self.state = state
        self.descriptors = descriptors
        self.outputs = outputs


def hold_signals() -> list[int]:
    """See to it that no signal of ours ends the process before somebody listens; returns the list of those that come.

    Call it first.
    """
    came: list[int] = []
    for number in (REPLACE, REEXECUTE, signal.SIGHUP):
        signal.signal(number, lambda number, _: came.append(number))
    return came


def inherit(environment: Mapping[str, str]) -> int | None:
    """Return the end of the queue that was left to this process, if there is one."""
    if (number := environment.get(_VARIABLE)) is not None:
        os.set_inheritable(int(number), False)
        return int(number)
    *others, end = [None, *(number for name, number in listed_descriptors(environment) if name == NAME)]
    for other in others:
        if other is not None:
            os.close(other)
    return end


def take_over(end: int, environment: Mapping[str, str]) -> Inheritance:
    """Take everything out of the queue, whose end is closed; nobody else has it from then on."""
    numbers: list[int] = []
    memory: int | None = None
    with socket.socket(fileno=end) as queue:
        while True:
            text, received = _receive(queue)
            if not text:
                break
            if text == _GREETING and memory is None and received:
                memory = received.pop(0)
            numbers += received
    store = DescriptorStore.of(environment)
    if store is not None:
        store.remove(NAME)
    descriptors = Descriptors(numbers)
    try:
        state = decode_agent(_read(memory))
    except (SavedStateInvalid, OSError) as reason:
        log("handover-refused", reason=reason)
        return Inheritance(None, descriptors, outputs_among(numbers))
    log("taken-over", software=state.software, sessions=len(state.sessions), descriptors=len(numbers))
    return Inheritance(state, descriptors, [])


def inherited_listeners(
    inheritance: Inheritance | None, listen: Sequence[tuple[str | None, int]], *, is_wanted: bool
) -> list[trio.SocketListener]:
    """Return the sockets that the predecessor listened on, where connections have waited meanwhile.

    Those that are not wanted, or that were for other addresses than *listen*, are closed.
    """
    if inheritance is None or inheritance.state is None:
        return []
    state = inheritance.state
    numbers = [number for place in state.listeners if (number := inheritance.descriptors.take(place)) is not None]
    if not is_wanted or state.listen != tuple(listen):
        for number in numbers:
            os.close(number)
        return []
    return [trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=number))) for number in numbers]


def pass_on(state: SavedAgent, descriptors: Descriptors, how: signal.Signals, environment: Mapping[str, str]) -> int:
    """Give *state* and *descriptors* away, and execute the program anew; returns only if that is not to be.

    Returns the end of the queue: with `REPLACE` the service manager has it too, and all that is left is to exit;
    with `REEXECUTE` the program could not be executed, and its place is still here.
    """
    end = _queue(encode_agent(state), descriptors.numbers)
    store = DescriptorStore.of(environment)
    is_stored = store is not None and store.put(NAME, end)
    if how == REPLACE:
        log("handed-over", descriptors=len(descriptors.numbers), stored=is_stored)
        return end
    # What arrives meanwhile waits: the new program has no handlers yet, and would die of it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {REPLACE, REEXECUTE, signal.SIGHUP})
    restore_limit()
    try:
        os.set_inheritable(end, True)
        words = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, words, {**_without_listening(environment), _VARIABLE: str(end)})
    except OSError as error:
        log("not-executed", program=sys.executable, error=error.strerror)
        os.set_inheritable(end, False)
        return end


def _queue(state: bytes, numbers: list[int]) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = os.memfd_create("pyinfra-agent-state", os.MFD_CLOEXEC)
    try:
        view = memoryview(state)
        while view:
            view = view[os.write(memory, view) :]
        with ours:
            socket.send_fds(ours, [_GREETING], [memory])
            for start in range(0, len(numbers), _DESCRIPTORS_MOST):
                socket.send_fds(ours, [b"more"], numbers[start : start + _DESCRIPTORS_MOST])
    finally:
        os.close(memory)
    return theirs.detach()


def _receive(queue: socket.socket) -> tuple[bytes, list[int]]:
    """Return one message and its descriptors; `socket.recv_fds` takes flags and ignores them."""
    found = array.array("i")
    space = socket.CMSG_SPACE(_DESCRIPTORS_MOST * found.itemsize)
    text, messages, _, _ = queue.recvmsg(64, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return text, list(found)


def _read(memory: int | None) -> bytes:
    if memory is None:
        raise SavedStateInvalid("there is none")
    with open(memory, "rb") as file:
        size = os.fstat(memory).st_size
        if size > _STATE_MOST_BYTES:
            raise SavedStateInvalid(f"it has {size} bytes")
        file.seek(0)
        return file.read()


def outputs_among(numbers: list[int]) -> list[int]:
    """Return those from which something may be read that somebody writes; close the others."""
    outputs: list[int] = []
    for number in numbers:
        try:
            mode = os.fstat(number).st_mode
            if stat.S_ISCHR(mode) or (stat.S_ISFIFO(mode) and _is_reader(number)):
                outputs.append(number)
            else:
                os.close(number)
        except OSError as error:
            log("handover-lost", error=describe_failure(error))
    return outputs


def _is_reader(number: int) -> bool:
    return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def _without_listening(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what was meant for the process that was started with it."""
    return {name: value for name, value in environment.items() if not name.startswith("LISTEN_")}
