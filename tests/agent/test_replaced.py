"""A large file that was replaced is freed after the answer, unless its space may be wanted at once."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest

from pyinfra_agent import _file_systems, _replaced, _threads
from pyinfra_agent._upload import Upload
from pyinfra_agent_protocol import Put
from tests.agent.helpers import House, socket_pair, until
from tests.agent.uploads import mounted, needs_root, refusal

pytestmark = needs_root

OLD = bytes(20 << 20)
NEW = b"new"


@pytest.fixture
def place(tmp_path, request):
    """A file system in memory, with room for six times the old file unless the test wants another."""
    place = tmp_path / "place"
    place.mkdir()
    with mounted("-t", "tmpfs", "-o", f"size={getattr(request, 'param', 120)}m", "none", str(place)):
        yield place


def put(path, *, digest=None, **options):
    upload = Upload.open(os.fsencode(path), digest=hashlib.sha256())
    upload.write([NEW])
    return upload.commit(len(NEW), digest or hashlib.sha256(NEW).digest(), **options)


def free_bytes(place):
    system = os.statvfs(place)
    return system.f_bavail * system.f_frsize


def open_in(place):
    """What this process has open there."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # that of the list
            continue
    return [path for path in found if path.startswith(str(place))]


def test_large_file_is_held_until_its_descriptor_is_closed(place):
    path = place / "file"
    path.write_bytes(OLD)
    before = free_bytes(place)
    replaced = put(path, holds_replaced=True).replaced
    assert path.read_bytes() == NEW
    assert os.fstat(replaced).st_nlink == 0
    assert free_bytes(place) <= before
    os.close(replaced)
    assert free_bytes(place) - before > len(OLD) // 2


def test_large_file_is_freed_at_once_unless_somebody_wants_to_do_that(place):
    (place / "file").write_bytes(OLD)
    before = free_bytes(place)
    assert put(place / "file").replaced is None
    assert free_bytes(place) - before > len(OLD) // 2


@pytest.mark.parametrize("place", [90], indirect=True)
def test_large_file_is_freed_at_once_where_space_is_scarce(place):
    (place / "file").write_bytes(OLD)
    before = free_bytes(place)
    assert put(place / "file", holds_replaced=True).replaced is None
    assert free_bytes(place) - before > len(OLD) // 2


def test_large_file_is_freed_at_once_on_a_file_system_of_another_machine(place, monkeypatch):
    monkeypatch.setattr(_file_systems, "_OF_THIS_MACHINE", frozenset({"ext4"}))  # as if tmpfs were NFS
    (place / "file").write_bytes(OLD)
    assert put(place / "file", holds_replaced=True).replaced is None


def test_small_file_is_freed_at_once(place):
    (place / "file").write_bytes(b"old")
    assert put(place / "file", holds_replaced=True).replaced is None
    assert put(place / "other", holds_replaced=True).replaced is None


def test_file_whose_name_is_fixed_is_written_in_place_and_not_held(place, monkeypatch):
    path = place / "file"
    path.write_bytes(OLD)

    def rename(*names, **options):
        raise OSError(errno.EBUSY, "mount point")

    monkeypatch.setattr(os, "rename", rename)
    result = put(path, holds_replaced=True)
    assert (result.in_place, result.replaced) == (True, None)
    assert path.read_bytes() == NEW
    assert open_in(place) == []


def test_nothing_is_held_of_an_upload_that_was_refused(place):
    (place / "file").write_bytes(OLD)
    assert refusal(lambda: put(place / "file", digest=bytes(32), holds_replaced=True)).code == "digest-mismatch"
    assert (place / "file").read_bytes() == OLD
    assert open_in(place) == []


async def test_space_is_there_again_after_the_answer(place, nursery):
    path = place / "file"
    path.write_bytes(OLD)
    before = free_bytes(place)
    controller = await House(nursery).welcome(socket_pair)
    call = await controller.ask(Put(bytes(path)), NEW)
    assert (call.result.created, call.result.in_place) == (False, False)
    await until(lambda: free_bytes(place) - before > len(OLD) // 2)
    assert open_in(place) == []


async def test_large_file_is_replaced_though_no_further_thread_can_be_started(place, nursery, monkeypatch):
    path = place / "file"
    path.write_bytes(OLD)
    controller = await House(nursery).welcome(socket_pair)
    submit = _threads._threads.submit

    def submit_without_a_thread(call):
        submit(call)  # as the pool does: it has the call before it tries to start a thread
        raise RuntimeError("can't start new thread")

    def in_background(call):
        with monkeypatch.context() as patch:
            patch.setattr(_threads._threads, "submit", submit_without_a_thread)
            _threads.in_background(call)

    monkeypatch.setattr(_replaced, "in_background", in_background)
    assert (await controller.ask(Put(bytes(path)), NEW)).refusal is None
    await until(lambda: open_in(place) == [])
    assert (await controller.ask(Put(bytes(path)), NEW)).refusal is None
