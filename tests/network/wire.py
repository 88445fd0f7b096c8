"""Two network namespaces joined by a wire with delay, jitter, loss and a rate, all of which change while it carries.

Many kernels are built without sch_netem, so the wire is a thread: it holds a tun device in each namespace, reads
packets from one and writes them to the other when their time has come. TCP itself is the kernel's.

The namespaces have no names: open descriptors hold them, so they go with this process however it ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

CONTROLLER_ADDRESS: Final = "192.0.2.1"  # TEST-NET-1 (RFC 5737): never a real neighbour's
OTHER_CONTROLLER_ADDRESS: Final = "192.0.2.9"
AGENT_ADDRESS: Final = "192.0.2.2"
PREFIX_BITS: Final = 24
DEVICE: Final = "tun0"
MTU_BYTES: Final = 1500
BURST_PACKETS: Final = 64
QUEUE_PACKETS: Final = 2000

_TUNSETIFF: Final = 0x400454CA  # include/uapi/linux/if_tun.h
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h; os.unshare arrives in Python 3.12 only


@dataclass
class Conditions:
    """What happens to each packet that is sent from now on, in either direction.

    Attributes:
        delay_seconds: one way.
        jitter_seconds: up to which is added at random; packets keep their order.
        loss: share of packets that are dropped.
        bits_per_second: of either direction; 0 is as fast as it goes.
        queue_seconds: packets that would wait longer than this for their turn are dropped, as routers do.
    """

    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    loss: float = 0.0
    bits_per_second: float = 0.0
    queue_seconds: float = 0.05


@dataclass
class _Lane:
    """One direction: packets under way with the time at which each arrives."""

    sink: int
    packets: deque
    free_at: float = 0.0
    last_due: float = 0.0


class Network:
    """Both ends of a wire and what it is like at the moment.

    Attributes:
        controller, agent: the command prefixes that put a process on either side.
        conditions: to be changed at will.
    """

    def __init__(self, controller_namespace, agent_namespace, conditions):
        self.controller = _entering(controller_namespace)
        self.agent = _entering(agent_namespace)
        self.conditions = conditions

    def on_controller(self, *command):
        """Run a command on the controller's side; return what it printed."""
        return _run(self.controller, *command)

    def on_agent(self, *command):
        """Run a command on the agent's side; return what it printed."""
        return _run(self.agent, *command)


@contextmanager
def network(**conditions):
    """Make both namespaces and the wire; *conditions* are those of `Conditions`.

    Raises:
        OSError: not root, or the kernel has no namespaces or tun devices.
    """
    wire = Conditions(**conditions)
    opened = []
    try:
        for address in (CONTROLLER_ADDRESS, AGENT_ADDRESS):
            opened += _in_new_thread(_namespace_with_tun)
            for words in (
                ["link", "set", "lo", "up"],
                ["addr", "add", f"{address}/{PREFIX_BITS}", "dev", DEVICE],
                ["link", "set", DEVICE, "mtu", str(MTU_BYTES), "txqueuelen", str(QUEUE_PACKETS), "up"],
            ):
                _run(_entering(opened[-2]), "ip", *words)
        controller_namespace, controller_tun, agent_namespace, agent_tun = opened
        stopped_read, stopped_write = os.pipe()
        opened += (stopped_read,)
        carrier = threading.Thread(target=_carry, args=(controller_tun, agent_tun, stopped_read, wire), name="wire")
        carrier.start()
        try:
            yield Network(controller_namespace, agent_namespace, wire)
        finally:
            os.close(stopped_write)
            carrier.join()
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _carry(left, right, stopped, conditions):
    """Carry packets between two tun devices until *stopped* is readable."""
    rng = random.Random(1)
    lanes = {left: _Lane(right, deque()), right: _Lane(left, deque())}
    while True:
        heads = [lane.packets[0][0] for lane in lanes.values() if lane.packets]
        seconds = max(0.0, min(heads) - time.monotonic()) if heads else None
        readable, _, _ = select.select([left, right, stopped], [], [], seconds)
        if stopped in readable:
            return
        for device in readable:
            _take(device, lanes[device], conditions, rng)
        now = time.monotonic()
        for lane in lanes.values():
            _deliver(lane, now)


def _take(device, lane, conditions, rng):
    for _ in range(BURST_PACKETS):
        try:
            packet = os.read(device, MTU_BYTES)
        except BlockingIOError:
            return
        if rng.random() < conditions.loss:
            continue
        now = time.monotonic()
        sent_at = now
        if conditions.bits_per_second:
            sent_at = max(now, lane.free_at)
            if sent_at - now > conditions.queue_seconds:
                continue
            sent_at += len(packet) * 8 / conditions.bits_per_second
            lane.free_at = sent_at
        due = sent_at + conditions.delay_seconds + rng.uniform(0, conditions.jitter_seconds)
        # Never before the packet ahead of it, also where the delay has just been lowered.
        lane.last_due = max(due, lane.last_due)
        lane.packets.append((lane.last_due, packet))


def _deliver(lane, now):
    while lane.packets and lane.packets[0][0] <= now:
        _, packet = lane.packets.popleft()
        try:
            os.write(lane.sink, packet)
        except BlockingIOError:
            return  # dropped, as by a full queue


def _in_new_thread(function):
    """Run *function* in a thread of its own: a changed namespace belongs to the thread and goes with it."""
    outcome = []

    def run():
        try:
            outcome.append(function())
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]


def _namespace_with_tun():
    """Move this thread to a new network namespace; return descriptors of it and of a tun device in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY), tun
    except OSError:
        os.close(tun)
        raise


def _entering(namespace):
    return ("nsenter", f"--net=/proc/{os.getpid()}/fd/{namespace}")


def _run(prefix, *command):
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
