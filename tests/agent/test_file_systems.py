"""Files in memory are told from those for which a disk, or another machine, may be waited for."""

from __future__ import annotations

import errno
import os
import subprocess
from types import SimpleNamespace

import pytest
import trio

from pyinfra_agent import _file_systems, _threads, _transfers
from pyinfra_agent._download import Download
from pyinfra_agent._file_systems import is_in_memory, is_of_this_machine
from pyinfra_agent._refusal import refused
from pyinfra_agent_protocol import DATA_BODY_BYTES, Get, Put
from tests.agent.helpers import House, announced, socket_pair
from tests.agent.uploads import mounted, needs_root

MIB = 1 << 20
CONTENT = os.urandom(MIB) * 9


@pytest.fixture
def memory(tmp_path):
    """A file system in memory, of 24 MiB."""
    place = tmp_path / "memory"
    place.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=24m", "none", str(place)):
        yield place


@pytest.fixture
async def controller(nursery, tmp_path):
    return await House(nursery, home=bytes(tmp_path)).welcome(socket_pair)


@pytest.fixture
def in_threads(monkeypatch):
    """How often a transfer has called into a thread."""
    calls = []
    for name in ("in_thread", "in_thread_briefly"):
        run = getattr(_transfers, name)
        monkeypatch.setattr(_transfers, name, lambda call, run=run: (calls.append(1), run(call))[1])
    return calls


@needs_root
def test_memory_is_told_from_what_may_have_to_be_waited_for(memory, tmp_path):
    device = os.stat(memory).st_dev
    assert is_in_memory(device)
    assert is_of_this_machine(device)
    disk = os.stat(tmp_path).st_dev
    found = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout
    assert is_in_memory(disk) == (found.strip() in ("tmpfs", "ramfs"))


@pytest.mark.parametrize("path", ["/proc/self/status", "/dev/pts/ptmx"])
def test_what_the_kernel_invents_is_neither(path):
    if not os.path.exists(path):
        pytest.skip(f"there is no {path}")
    device = os.stat(path).st_dev
    assert not is_in_memory(device)
    assert not is_of_this_machine(device)


def test_file_that_is_mounted_nowhere_is_neither():
    descriptor = os.memfd_create("test")
    try:
        assert not is_of_this_machine(os.fstat(descriptor).st_dev)
    finally:
        os.close(descriptor)


def test_without_proc_nothing_is_known(monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert not is_in_memory(os.stat("/").st_dev)
    assert not is_of_this_machine(os.stat("/").st_dev)


@needs_root
async def test_where_memory_has_to_be_waited_for_threads_take_over_again(controller, memory, in_threads, monkeypatch):
    monkeypatch.setattr(_threads, "_QUICK_SECONDS", 0.0)  # as if each call here had been slow
    path = bytes(memory / "file")
    assert (await controller.ask(Put(path), CONTENT)).result.created
    assert (memory / "file").read_bytes() == CONTENT
    puts = len(in_threads)
    assert puts > 3
    assert (await controller.ask(Get(path))).out == CONTENT
    assert len(in_threads) - puts > 3


@needs_root
async def test_large_file_in_memory_needs_a_thread_to_open_and_to_end(controller, memory, in_threads, monkeypatch):
    monkeypatch.setattr(_threads, "_QUICK_SECONDS", 60.0)
    path = bytes(memory / "file")
    assert (await controller.ask(Put(path), CONTENT)).result.created
    assert (memory / "file").read_bytes() == CONTENT
    assert len(in_threads) == 2
    got = await controller.ask(Get(path))
    assert got.out == CONTENT
    assert {"size": got.result.size, "digest": got.result.digest} == announced(CONTENT)
    assert len(in_threads) == 3


@needs_root
async def test_get_of_a_file_in_memory_is_written_by_its_own_task_and_lets_others_run(
    controller, memory, nursery, monkeypatch
):
    """A socket that has always room: no piece waits for the writer's turn, and after four others have theirs."""
    monkeypatch.setattr(_threads, "_QUICK_SECONDS", 60.0)
    path = memory / "file"
    path.write_bytes(CONTENT)
    pieces = [0]
    pushed = []
    read = _transfers.at_once

    def count(call):
        pieces[-1] += 1
        return read(call)

    async def tick():
        while True:
            pieces.append(0)
            await trio.lowlevel.checkpoint()

    class Channel:
        """Sends whatever it is given."""

        sent = 0

        async def send(self, block):
            self.sent += len(block)

        def push(self):
            pushed.append(self.sent)

    monkeypatch.setattr(_transfers, "at_once", count)
    nursery.start_soon(tick)
    context = SimpleNamespace(locate=bytes)
    result = await _transfers._get(context, Channel(), Get(bytes(path)))
    assert result.size == len(CONTENT) == pushed[-1] + len(CONTENT) % (4 * DATA_BODY_BYTES)
    assert len(pushed) == len(CONTENT) // (4 * DATA_BODY_BYTES)
    assert 1 < max(pieces) <= 2 * _transfers._PIECES_A_TURN


@needs_root
async def test_large_file_elsewhere_is_left_to_threads(controller, memory, in_threads, monkeypatch):
    monkeypatch.setattr(_file_systems, "_IN_MEMORY", frozenset())  # as if tmpfs were a disk
    path = bytes(memory / "file")
    assert (await controller.ask(Put(path), CONTENT)).result.created
    puts = len(in_threads)
    assert puts > 3
    assert (await controller.ask(Get(path))).out == CONTENT
    assert len(in_threads) - puts > 3


@needs_root
@pytest.mark.parametrize("size", [4 * DATA_BODY_BYTES + more for more in (-1, 0, 1)] + [8 * DATA_BODY_BYTES, MIB])
async def test_every_byte_arrives_whatever_is_left_over(controller, memory, size):
    content = os.urandom(size)
    assert (await controller.ask(Put(bytes(memory / "file")), content)).refusal is None
    assert (await controller.ask(Get(bytes(memory / "file")))).out == content


@needs_root
async def test_memory_that_is_full_refuses_and_leaves_the_old_file(controller, memory):
    (memory / "file").write_bytes(b"old")
    call = await controller.ask(Put(bytes(memory / "file")), CONTENT * 3)
    assert call.refusal.code == "no-space"
    assert (memory / "file").read_bytes() == b"old"
    assert [path.name for path in memory.iterdir()] == ["file"]
    system = os.statvfs(memory)
    assert system.f_bavail * system.f_frsize > 23 * MIB


@needs_root
async def test_cancel_of_a_put_into_memory_leaves_the_old_file(controller, memory):
    (memory / "file").write_bytes(b"old")
    call = controller.start(Put(bytes(memory / "file")))
    await controller.send(call, CONTENT)
    controller.cancel(call)
    await call.wait()
    assert call.refusal.code == "cancelled"
    assert (memory / "file").read_bytes() == b"old"


@needs_root
async def test_file_in_memory_that_shrinks_while_it_is_read_ends_where_it_ends_now(controller, memory, monkeypatch):
    path = memory / "file"
    path.write_bytes(CONTENT)
    read_block = Download.read_block

    def read_block_of_less(self, most):
        block = read_block(self, most)
        os.truncate(path, MIB)
        return block

    monkeypatch.setattr(Download, "read_block", read_block_of_less)
    call = await controller.ask(Get(bytes(path)))
    assert call.refusal is None
    assert call.out == CONTENT[:MIB]
    assert call.result.size == MIB


@needs_root
async def test_file_in_memory_that_can_no_longer_be_read_is_refused(controller, memory, monkeypatch):
    (memory / "file").write_bytes(CONTENT)
    read = Download.read

    def read_once(self, most):
        if os.lseek(self._fd, 0, os.SEEK_CUR):
            raise refused(OSError(errno.EIO, "Input/output error"), "read", self._path)
        return read(self, most)

    monkeypatch.setattr(Download, "read", read_once)
    call = await controller.ask(Get(bytes(memory / "file")))
    assert call.refusal is not None
    assert str(memory / "file") in call.refusal.text
