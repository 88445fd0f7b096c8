"""`pyinfra-agent rsh`: a remote shell for rsync, `rsync -e 'pyinfra-agent rsh' SRC HOST:DST`.

For `files.rsync` the pyinfra process starts rsync and this file as rsync's remote shell, on the bare interpreter: it
hands rsync's streams to that process, which runs the command in the session that it has, and waits for the status.
A second connection, a second place for keys and a second copy of every byte are saved so.

Nothing is imported here that handing over does not need: a start takes some 20 ms, and 150 ms with the command line.
"""

from __future__ import annotations

import os
import sys

__all__ = ["FAILED", "LENGTH_BYTES", "SOCKET_VARIABLE", "rsh"]

#: Holds the number of an inherited descriptor: a socket whose other end the pyinfra process has.
SOCKET_VARIABLE = "PYINFRA_AGENT_RSH_SOCKET"
#: Bytes of the number (big-endian) in front of the words.
LENGTH_BYTES = 4
#: The exit status for every failure of the shell itself, as ssh has it.
FAILED = 255

_INTERRUPTED = 130


def rsh(argv: list[str]) -> int:
    """Run a command on an agent, standard streams and exit status included; *argv* is `[-l USER] HOST COMMAND...`."""
    number = os.environ.get(SOCKET_VARIABLE)
    if number is None:
        from ._remote_shell import by_hand

        return by_hand(argv)
    try:
        return _hand_over(int(number), argv)
    except (OSError, ValueError) as error:
        print(f"pyinfra-agent rsh: the pyinfra that started this rsync cannot be reached: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED


def _hand_over(number: int, words: list[str]) -> int:
    """Give standard input and output to the process behind the socket *number*; return the status that it answers."""
    import socket

    # A pair of our own: rsync's processes have the inherited socket too, so its end would not tell that we have died.
    ours, theirs = socket.socketpair()
    with socket.socket(fileno=number) as door, theirs:
        socket.send_fds(door, [b"\0"], [0, 1, theirs.fileno()])
    # Whoever else has a stream open keeps rsync from seeing its end.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    message = b"\0".join(map(os.fsencode, words))
    with ours:
        ours.sendall(len(message).to_bytes(LENGTH_BYTES, "big") + message)
        status = ours.recv(1)
    return status[0] if status else FAILED


if __name__ == "__main__":
    sys.exit(rsh(sys.argv[1:]))
