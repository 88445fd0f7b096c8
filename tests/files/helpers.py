"""What the tests of files share: file systems, what a directory holds, and what other programs do."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import stat
import struct
import subprocess
import tempfile
from pathlib import Path

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

SOAK = os.environ.get("PYINFRA_AGENT_SOAK") == "1"
"""Set by `make soak`: the same tests, many more times and much longer."""

MIB = 1 << 20
NOBODY = 65534
ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"
SFTP_SERVER = "/usr/lib/openssh/sftp-server"

_IN_CREATE, _IN_MOVED_TO = 0x100, 0x80  # include/uapi/linux/inotify.h
_INOTIFY_EVENT = struct.Struct("iIII")

# From how few bytes each file system can be made.
_IMAGE_BYTES = {"ext4": 8 * MIB, "btrfs": 120 * MIB}


def times(short, soak):
    """Return how often, how many or how long: *soak* where a soak was asked for."""
    return soak if SOAK else short


def needs_tool(name):
    """Skip where *name* is not installed."""
    if shutil.which(name) is None and not os.access(name, os.X_OK):
        pytest.skip(f"needs {name}")


@contextlib.contextmanager
def mounted(*arguments):
    """Mount what mount(8) is told to, the last argument being a directory of the test's own."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mount is not possible here: {done.stderr.strip()}")
    try:
        yield
    finally:
        # An agent's thread may still close what it had open when the test was over.
        if subprocess.run(["umount", arguments[-1]], capture_output=True, check=False).returncode != 0:
            subprocess.run(["umount", "--lazy", arguments[-1]], check=True)


@contextlib.contextmanager
def image(kind):
    """Make a file that holds an empty file system."""
    needs_tool(f"mkfs.{kind}")
    with tempfile.NamedTemporaryFile(prefix="pyinfra-agent-test-") as file:
        file.truncate(_IMAGE_BYTES[kind])
        subprocess.run([f"mkfs.{kind}", "-q", file.name], check=True, capture_output=True)
        yield Path(file.name)


@contextlib.contextmanager
def flagged(flag, path):
    """Give *path* an inode flag (chattr) as long as the block lasts."""
    needs_tool("chattr")
    done = subprocess.run(["chattr", f"+{flag}", path], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"chattr does not work here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", f"-{flag}", path], check=True)


def acl(*entries):
    """Encode (tag, permissions, id) entries as the kernel's xattr version 2."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ACL_WITH_NOBODY = acl((1, 6, 2**32 - 1), (2, 4, NOBODY), (4, 0, 2**32 - 1), (0x10, 4, 2**32 - 1), (0x20, 0, 2**32 - 1))


def contents(directory):
    """Return all that is below *directory*: name, type, permissions, owner, links, and content or target."""
    found = {}
    base = os.fsencode(directory)
    for parent, directories, files in os.walk(base):
        for name in (*directories, *files):
            path = os.path.join(parent, name)
            state = os.lstat(path)
            if stat.S_ISREG(state.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            else:
                content = os.readlink(path) if stat.S_ISLNK(state.st_mode) else b""
            links = state.st_nlink if stat.S_ISREG(state.st_mode) else 1
            found[os.path.relpath(path, base)] = (
                stat.filemode(state.st_mode), state.st_uid, state.st_gid, links, content
            )  # fmt: skip
    return found


def digest_of(path):
    """Return the SHA-256 of a file's content, read a mebibyte at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


class DelayingProxy:
    """Carries connections to *port* on 127.0.0.1, each byte *seconds* later in either direction."""

    def __init__(self, port, seconds):
        self._agent_port = port
        self._seconds = seconds
        self._server = StreamServer(("127.0.0.1", 0), self._serve)

    @property
    def port(self):
        return self._server.server_port

    def _serve(self, controller, address):
        agent = socket.create_connection(("127.0.0.1", self._agent_port))
        ends = (controller, agent)
        for end in ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with controller, agent:
            gevent.joinall([gevent.spawn(self._pump, *pair) for pair in (ends, ends[::-1])], count=1)

    def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                gevent.spawn_later(self._seconds, self._send, sink, data)

    @staticmethod
    def _send(sink, data):
        with contextlib.suppress(OSError):
            sink.sendall(data)

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *exc):
        self._server.stop(timeout=0.1)


@contextlib.contextmanager
def names_made_in(directories):
    """Yield a list that in the end holds every name that appeared in *directories*, however shortly (inotify(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert watch >= 0
    made = []
    try:
        for directory in directories:
            assert libc.inotify_add_watch(watch, os.fsencode(directory), _IN_CREATE | _IN_MOVED_TO) > 0
        yield made
        while True:
            try:
                events = os.read(watch, 65536)
            except BlockingIOError:
                break
            while events:
                *_, length = _INOTIFY_EVENT.unpack_from(events)
                name = events[_INOTIFY_EVENT.size : _INOTIFY_EVENT.size + length]
                made.append(os.fsdecode(name.rstrip(b"\0")))
                events = events[_INOTIFY_EVENT.size + length :]
    finally:
        os.close(watch)
