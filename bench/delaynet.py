"""Two network namespaces joined by a wire with a settable round-trip time.

Many kernels are built without sch_netem, so the wire is this process: it holds a tun device in each namespace,
reads packets from one and writes them to the other when their time has come. TCP itself is the kernel's, with its
handshake, slow start, Nagle's algorithm and delayed acknowledgements.

The namespaces have no names: open descriptors hold them, so they go with this process however it ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from lab import PeerUnavailableError, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

CLIENT_ADDRESS: Final = "192.0.2.1"  # TEST-NET-1 (RFC 5737): never a real neighbour's
SERVER_ADDRESS: Final = "192.0.2.2"
DEVICE: Final = "tun0"
TUNSETIFF: Final = 0x400454CA  # include/uapi/linux/if_tun.h
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h; os.unshare arrives in Python 3.12 only
MTU_BYTES: Final = 1500
QUEUE_PACKETS: Final = 20_000  # more than the bandwidth and delay of these figures fill; then dropped, as routers do
BURST_PACKETS: Final = 64


class DelayNet:
    """A client side and a server side. `place` says how to start processes on them."""

    def __init__(self, client_namespace: int, server_namespace: int, wire: Wire) -> None:
        self._wire = wire
        self.place = Place(
            "delayed", SERVER_ADDRESS, _enter_namespace(server_namespace), _enter_namespace(client_namespace)
        )

    def set_round_trip(self, seconds: float) -> None:
        """Delay each packet that is sent from now on by half of *seconds*."""
        self._wire.one_way_s = seconds / 2


@contextmanager
def delay_net() -> Iterator[DelayNet]:
    """Make both namespaces and the wire.

    Raises:
        PeerUnavailableError: not root, or ip, nsenter or /dev/net/tun is missing.
    """
    if os.geteuid() != 0:
        raise PeerUnavailableError("network namespaces need root")
    for tool, package in (("ip", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(tool) is None:
            raise PeerUnavailableError(f"{tool} is not installed (package {package})")
    opened: list[int] = []
    try:
        try:
            for mine, other in ((CLIENT_ADDRESS, SERVER_ADDRESS), (SERVER_ADDRESS, CLIENT_ADDRESS)):
                opened += _in_new_thread(_namespace_with_tun)
                _configure(opened[-2], mine, other)
        except OSError as error:
            raise PeerUnavailableError(f"no namespace with a tun device can be made: {error}") from error
        except subprocess.CalledProcessError as error:
            raise PeerUnavailableError(f"`ip` failed: {error.stderr.strip()}") from error
        client_namespace, client_tun, server_namespace, server_tun = opened
        with Wire(client_tun, server_tun) as wire:
            yield DelayNet(client_namespace, server_namespace, wire)
    finally:
        for descriptor in opened:
            os.close(descriptor)


class Wire:
    """A thread that carries packets between two tun devices, each `one_way_s` late."""

    def __init__(self, left: int, right: int) -> None:
        self.one_way_s = 0.0
        self._opposite = {left: right, right: left}
        self._waiting: dict[int, deque[tuple[float, bytes]]] = {left: deque(), right: deque()}
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="delaying wire")

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop_write)
        self._thread.join()
        os.close(self._stop_read)

    def _carry(self) -> None:
        watched = [*self._opposite, self._stop_read]
        while True:
            readable, _, _ = select.select(watched, [], [], self._until_next_due())
            if self._stop_read in readable:
                return
            for device in readable:
                self._receive(device)
            self._deliver()

    def _until_next_due(self) -> float | None:
        heads = [queue[0][0] for queue in self._waiting.values() if queue]
        return max(0.0, min(heads) - time.monotonic()) if heads else None

    def _receive(self, device: int) -> None:
        queue = self._waiting[self._opposite[device]]
        for _ in range(BURST_PACKETS):
            try:
                packet = os.read(device, MTU_BYTES)
            except BlockingIOError:
                return
            if len(queue) < QUEUE_PACKETS:
                # Never before the packet ahead of it, also where the delay has just been lowered.
                due = time.monotonic() + self.one_way_s
                queue.append((max(due, queue[-1][0]) if queue else due, packet))

    def _deliver(self) -> None:
        now = time.monotonic()
        for device, queue in self._waiting.items():
            while queue and queue[0][0] <= now:
                try:
                    os.write(device, queue[0][1])
                except BlockingIOError:
                    break
                queue.popleft()


def _in_new_thread(function: Callable[[], T]) -> T:
    """Run *function* in a thread of its own: a changed namespace belongs to the thread and goes with it."""
    outcome: list[T | BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


def _namespace_with_tun() -> tuple[int, int]:
    """Move this thread to a new network namespace; return descriptors of it and of a tun device in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY), tun
    except OSError:
        os.close(tun)
        raise


def _enter_namespace(namespace: int) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{os.getpid()}/fd/{namespace}")


def _configure(namespace: int, mine: str, other: str) -> None:
    for words in (
        ["link", "set", "lo", "up"],
        ["addr", "add", mine, "peer", other, "dev", DEVICE],
        ["link", "set", DEVICE, "mtu", str(MTU_BYTES), "txqueuelen", str(QUEUE_PACKETS), "up"],
    ):
        command = [*_enter_namespace(namespace), "ip", *words]
        subprocess.run(command, check=True, capture_output=True, text=True)
