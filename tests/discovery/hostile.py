"""A program: answers questions for agents as an attacker would, until it is killed. It says when it begins.

hostile.py ATTACK SOURCE_ADDRESS [SOURCE_PORT]
"""

from __future__ import annotations

import socket
import struct
import sys

from pyinfra_agent_protocol.advert import SERVICE

GROUP = ("224.0.0.251", 5353)
NAME = tuple(f"{SERVICE}.local".encode().split(b"."))
PTR, TXT, SRV, A = 12, 16, 33, 1


def name(labels):
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def record(owner, kind, data):
    return owner + struct.pack(">HHIH", kind, 0x8001, 120, len(data)) + data


def message(*records):
    return struct.pack(">HHHHHH", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def agent(label, address="192.0.2.66", text=b"\x03v=1"):
    instance = (label, *NAME)
    return message(
        record(name(NAME), PTR, name(instance)),
        record(name(instance), SRV, struct.pack(">HHH", 0, 0, 7963) + name((label, b"local"))),
        record(name(instance), TXT, text),
        record(name((label, b"local")), A, socket.inet_aton(address)),
    )


def junk():
    """Ten thousand records and more: of any type, pointing to each other."""
    one = record(b"\xc0\x0c", PTR, b"\x01x\xc0\x0c")
    first = record(name(NAME), PTR, name((b"x", *NAME)))
    for _ in range(20):
        yield message(first, *[one] * 550)


def instances():
    """Ten thousand agents that are not there, and that have to be asked for."""
    for number in range(0, 10_000, 100):
        yield message(*(record(name(NAME), PTR, name((b"x%d" % (number + part), *NAME))) for part in range(100)))


def loops():
    """Names that run in circles, forwards, or through the whole packet."""
    header = struct.pack(">HHHHHH", 0, 0x8400, 0, 600, 0, 0)
    yield header + record(b"\xc0\x0c", PTR, b"\xc0\x0c") * 600
    yield header + b"\0\0" + b"".join(struct.pack(">H", 0xC00A + 2 * n) for n in range(1, 2000)) + b"\0" * 100
    yield header + (b"\x01a" * 4000)
    yield b"\xff" * 8900


def terminal():
    """Names and values that would move a cursor, set a title or hide text."""
    for label in (b"\x1b[2J\x1b[H", b"a\nb\r", b"\x9b31m", "\u202eevil".encode(), b"\xff\xfe", b"\0"):
        fingerprint = b"\x20fp=aaaaa-bbbbb-ccccc-ddddd-eeeee"
        yield agent(label, text=b"\x03v=1" + fingerprint + b"\x0bos=\x1b]0;x\x07 z" + b"\x0cgroups=\x1b[1m!")
        yield agent(label, text=bytes(range(1, 200)) * 3)


def honest():
    yield agent(b"far", text=b"\x03v=1\x20fp=aaaaa-bbbbb-ccccc-ddddd-eeeee")


def endless():
    """As fast as it goes."""
    while True:
        yield from junk()


def main():
    attack, source = sys.argv[1:3]
    port = int(sys.argv[3]) if len(sys.argv) > 3 else GROUP[1]
    ears = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ears.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    ears.bind(GROUP)
    near = source if source.startswith("192.") else "192.0.2.2"
    ears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP[0]) + socket.inet_aton(near))
    mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    mouth.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    mouth.bind((source, port))
    mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(near))
    print("ready", flush=True)
    while True:
        _, asker = ears.recvfrom(9000)
        for packet in globals()[attack]():
            mouth.sendto(packet, asker)
            if attack != "honest":
                mouth.sendto(packet, GROUP)


if __name__ == "__main__":
    main()
