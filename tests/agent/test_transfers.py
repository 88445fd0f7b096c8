"""put, get and stat over the wire, for ourselves and through another user's helper."""

from __future__ import annotations

import os

import pytest
import trio

from pyinfra_agent._drain import Drain
from pyinfra_agent_protocol import Get, Put, Stat
from tests.agent.helpers import House, announced, is_alive, socket_pair, until

MIB = 1024 * 1024
CONTENT = bytes(range(256)) * 4096 * 3


@pytest.fixture
def house(nursery, tmp_path):
    return House(nursery, home=bytes(tmp_path), drain=Drain(quiet_seconds=0.05, most_seconds=0.5))


@pytest.fixture
async def controller(house):
    return await house.welcome(socket_pair)


@pytest.mark.parametrize("content", [b"", b"small", CONTENT], ids=["empty", "small", "3 MiB"])
async def test_file_that_was_put_can_be_got(controller, tmp_path, content):
    path = bytes(tmp_path / "file")
    put = await controller.ask(Put(path, mode=0o640), content)
    assert (put.result.size, put.result.created, put.result.in_place) == (len(content), True, False)
    assert (tmp_path / "file").read_bytes() == content
    got = await controller.ask(Get(path))
    assert got.out == content
    assert got.result.mode == 0o640
    assert {"size": got.result.size, "digest": got.result.digest} == announced(content)


async def test_relative_names_begin_at_home(controller, tmp_path):
    assert (await controller.ask(Put(b"file"), b"x")).refusal is None
    assert (tmp_path / "file").read_bytes() == b"x"
    assert (await controller.ask(Get(b"file"))).out == b"x"
    assert (await controller.ask(Stat(b"file"))).result.stat["size"] == 1


async def test_stat_says_what_is_there_and_what_is_not(controller, tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    assert (await controller.ask(Stat(b"link"))).result.stat is None
    assert (await controller.ask(Stat(b"link", follow=False))).result.stat["type"] == "link"
    assert (await controller.ask(Stat(b"missing"))).result.stat is None


async def test_get_of_a_missing_file_or_a_directory_is_refused(controller, tmp_path):
    assert (await controller.ask(Get(b"missing"))).refusal.code == "not-found"
    assert (await controller.ask(Get(bytes(tmp_path)))).refusal.code == "is-directory"


async def test_put_to_a_directory_is_refused(controller, tmp_path):
    call = await controller.ask(Put(bytes(tmp_path)), b"x")
    assert call.refusal.code == "is-directory"
    assert str(tmp_path) in call.refusal.text


async def test_large_put_that_is_refused_at_once_does_not_stop_the_sender(controller):
    call = await controller.ask(Put(b"/nonexistent/file"), CONTENT)
    assert call.refusal.code == "not-found"
    assert (await controller.ask(Stat(b"/"))).refusal is None


@pytest.mark.parametrize("fields", [{}, {"size": 4}, {"digest": b"abcd"}], ids=["nothing", "size", "digest"])
async def test_put_whose_end_does_not_say_what_was_sent_is_refused(controller, tmp_path, fields):
    call = controller.start(Put(b"file"))
    await controller.send(call, b"data")
    controller.end(call, **fields)
    await call.wait()
    assert call.refusal.code == "bad-request"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [10, 3 * MIB])
async def test_put_of_other_content_than_announced_changes_nothing(controller, tmp_path, size):
    (tmp_path / "file").write_bytes(b"old")
    call = controller.start(Put(b"file"))
    await controller.send(call, b"x" * size)
    controller.end(call, **announced(b"y" * size))
    await call.wait()
    assert call.refusal.code not in ("internal", "cancelled")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("size", [0, 10, MIB])
async def test_cancel_of_a_put_leaves_the_old_file_and_no_litter(controller, tmp_path, size):
    (tmp_path / "file").write_bytes(b"old")
    call = controller.start(Put(b"file"))
    await controller.send(call, b"x" * size)
    await trio.sleep(0.05)
    controller.cancel(call)
    await call.wait()
    assert call.refusal.code == "cancelled"
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


async def test_cancel_of_a_get_is_answered_and_closes_the_file(controller, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 8 * MIB)
    before = len(os.listdir("/proc/self/fd"))
    controller.consumes = False
    call = controller.start(Get(b"file"))
    await call.wait_output(100_000)
    controller.cancel(call)
    await trio.sleep(0.05)
    controller.consumes = True
    controller.protocol.consume(call.number, len(call.out))
    controller.wake()
    await call.wait()
    assert call.refusal.code == "cancelled"
    assert len(os.listdir("/proc/self/fd")) == before


async def test_many_files_at_once(controller, tmp_path):
    calls = [controller.start(Put(b"file-%d" % number)) for number in range(50)]
    for number, call in enumerate(calls):
        content = b"%d" % number * 1000
        await controller.send(call, content)
        controller.end(call, **announced(content))
    for call in calls:
        await call.wait()
        assert call.refusal is None
    assert (tmp_path / "file-49").read_bytes() == b"49" * 1000
    assert len(list(tmp_path.iterdir())) == 50


# -- as another user: the wrapping is the controller's, the agent only runs it


def writer(script: bytes) -> tuple[bytes, ...]:
    return (b"sh", b"-c", script)


@pytest.mark.parametrize("content", [b"", b"small", CONTENT], ids=["empty", "small", "3 MiB"])
async def test_put_as_other_gives_the_verified_bytes_to_the_writer(controller, tmp_path, content):
    call = await controller.ask(Put(b"ignored", argv=writer(b"cat > out"), env={b"X": b"1"}), content)
    assert call.refusal is None
    assert call.result.in_place
    assert call.result.size == len(content)
    assert (tmp_path / "out").read_bytes() == content
    assert not (tmp_path / "ignored").exists()


async def test_put_as_other_starts_no_writer_for_content_that_does_not_verify(controller, tmp_path):
    call = controller.start(Put(b"ignored", argv=writer(b"cat > out")))
    await controller.send(call, b"data")
    controller.end(call, **announced(b"dada"))
    await call.wait()
    assert call.refusal is not None
    assert not (tmp_path / "out").exists()


async def test_put_as_other_says_the_last_line_of_what_the_writer_said(controller):
    script = b"echo chatter >&2; echo 'sudo: a password is required' >&2; exit 1"
    call = await controller.ask(Put(b"/root/x", argv=writer(script)), b"x")
    assert call.refusal.code == "helper"
    assert call.refusal.text == "cannot write /root/x as the other user: sudo: a password is required"


async def test_put_as_other_says_what_sudo_said_and_not_its_afterthought(controller):
    script = b"echo 'sudo: unknown user nosuch' >&2; echo 'sudo: error initializing audit plugin x' >&2; exit 1"
    call = await controller.ask(Put(b"x", argv=writer(script)), b"x")
    assert call.refusal.text.endswith("sudo: unknown user nosuch")


@pytest.mark.parametrize("how", ["put", "get"])
async def test_helper_that_explains_itself_on_standard_output_is_heard(controller, how):
    """As nologin(8) does, which stands where an account has no shell."""
    argv = writer(b"echo 'This account is currently not available.'; exit 1")
    request = Put(b"x", argv=argv) if how == "put" else Get(b"x", argv=argv, nonce=b"NONCE")
    call = await (controller.ask(request, b"x") if how == "put" else controller.ask(request))
    assert call.refusal.code == "helper"
    assert call.refusal.text.endswith("as the other user: This account is currently not available.")


async def test_put_as_other_says_how_a_silent_writer_ended(controller):
    call = await controller.ask(Put(b"x", argv=writer(b"exit 9")), b"x")
    assert "exit status 9" in call.refusal.text
    call = await controller.ask(Put(b"x", argv=writer(b"kill -9 $$")), b"x")
    assert "killed by signal 9" in call.refusal.text


async def test_what_a_helper_says_reaches_no_terminal_as_it_is(controller):
    call = await controller.ask(Put(b"x", argv=writer(b"printf 'a\\033[2Jb' >&2; exit 1")), b"x")
    assert call.refusal.text.endswith("a?[2Jb")


async def test_put_as_other_with_a_writer_that_does_not_exist_is_refused(controller):
    call = await controller.ask(Put(b"x", argv=(b"/nonexistent/sudo",)), b"x")
    assert call.refusal.code == "spawn"


async def test_writer_that_reads_nothing_is_no_failure_of_ours(controller):
    assert (await controller.ask(Put(b"x", argv=writer(b"exit 0")), CONTENT)).result.size == len(CONTENT)


async def test_cancel_of_a_put_as_other_before_all_is_there_starts_no_writer(controller, house, tmp_path):
    call = controller.start(Put(b"x", argv=writer(b"touch out; cat")))
    await controller.send(call, b"x" * 1000)
    await trio.sleep(0.05)
    controller.cancel(call)
    await call.wait()
    assert call.refusal.code == "cancelled"
    assert not (tmp_path / "out").exists()


async def test_cancel_while_the_writer_runs_lets_it_finish(controller, house, tmp_path):
    """Half a file would be worse than the whole one."""
    os.mkfifo(tmp_path / "go")
    call = controller.start(Put(b"x", argv=writer(b"read line < go; cat > out; touch over")))
    await controller.send(call, b"content")
    controller.end(call, **announced(b"content"))
    await until(lambda: house.supervisor.processes)
    controller.cancel(call)
    await call.wait()
    assert call.refusal.code == "cancelled"
    await trio.to_thread.run_sync((tmp_path / "go").write_text, "\n")
    await until((tmp_path / "over").exists)
    assert (tmp_path / "out").read_bytes() == b"content"


@pytest.mark.parametrize("content", [b"", b"small", CONTENT], ids=["empty", "small", "3 MiB"])
@pytest.mark.parametrize(
    "chatter", [b"", b"Welcome!\n", b"NONC", b"x" * 200_000], ids=["quiet", "polite", "near", "long"]
)
async def test_get_as_other_begins_behind_the_nonce_whatever_a_profile_prints(controller, tmp_path, content, chatter):
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "chatter").write_bytes(chatter)
    argv = writer(b"cat chatter; printf NONCE; exec cat file")
    call = await controller.ask(Get(b"file", argv=argv, nonce=b"NONCE"))
    assert call.refusal is None
    assert call.out == content
    assert {"size": call.result.size, "digest": call.result.digest} == announced(content)


async def test_get_as_other_finds_a_nonce_that_comes_in_pieces(controller):
    script = b"for part in aN ON CEc ontent; do printf $part; sleep 0.02; done"
    assert (await controller.ask(Get(b"file", argv=writer(script), nonce=b"NONCE"))).out == b"content"


async def test_get_as_other_of_content_that_holds_the_nonce(controller):
    call = await controller.ask(Get(b"file", argv=writer(b"printf NONCEaNONCEb"), nonce=b"NONCE"))
    assert call.out == b"aNONCEb"


async def test_get_as_other_without_a_nonce_takes_all(controller):
    assert (await controller.ask(Get(b"file", argv=writer(b"printf all")))).out == b"all"
    assert (await controller.ask(Get(b"file", argv=writer(b":")))).result.size == 0


async def test_get_as_other_whose_reader_never_begins_is_refused(controller):
    call = await controller.ask(Get(b"file", argv=writer(b"echo chatter"), nonce=b"NONCE"))
    assert call.refusal.code == "helper"
    assert "before it began to read" in call.refusal.text
    assert call.out == b""


async def test_get_as_other_that_fails_in_the_middle_is_refused(controller):
    call = await controller.ask(
        Get(b"file", argv=writer(b"printf NONCEpart; echo 'cat: file: Input/output error' >&2; exit 1"), nonce=b"NONCE")
    )
    assert call.refusal.code == "helper"
    assert "Input/output error" in call.refusal.text


async def test_cancel_of_a_get_as_other_ends_its_reader(controller):
    call = controller.start(Get(b"file", argv=writer(b"printf NONCE$$; echo; exec sleep 600"), nonce=b"NONCE"))
    pid = int(await call.wait_line())
    controller.cancel(call)
    await call.wait()
    assert call.refusal.code == "cancelled"
    await until(lambda: not is_alive(pid))
