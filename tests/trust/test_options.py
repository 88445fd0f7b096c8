"""Every option of a line with every request: what is carried out, and what is refused."""

from __future__ import annotations

import os

import pytest

from pyinfra_agent_protocol import Get, Info, PtySize, Put, Stat
from tests.agent.helpers import TestController, announced, sh
from tests.trust.conftest import ACCOUNT, line_of

#: What can be asked: whether it was done is told by `done`.
ASKED = ("exec", "exec with pty", "signal", "put", "put through argv", "get", "get through argv", "stat", "info")
COMMANDS = {"exec", "exec with pty", "signal", "put through argv", "get through argv"}
FORBIDDEN = {
    "": set(),
    "no-exec": COMMANDS,
    "no-pty": {"exec with pty"},
    "no-put": {"put", "put through argv"},
    "no-get": {"get", "get through argv", "stat"},
    "no-exec,no-put,no-get": set(ASKED) - {"info"},
    "from=192.0.2.0/24": set(),
    "expires=2099-01-01": set(),
    f"user={ACCOUNT}": set(),
    f"user={ACCOUNT},no-pty": {"exec with pty"},
    f"user={ACCOUNT},no-put": {"put", "put through argv"},
}


async def ask(controller, asked, directory):
    """Ask; return the call when it is answered, and whether what was asked for has happened."""
    file, content = directory / "file", b"0123456789" * 20_000
    path = bytes(file)
    if asked == "exec":
        call = await controller.ask(sh(f"echo did; : >{directory}/trace"))
        return call, call.out == b"did\n"
    if asked == "exec with pty":
        call = await controller.ask(sh("test -t 1 && echo did", pty=PtySize()))
        return call, call.out == b"did\r\n"
    if asked == "signal":
        call = controller.start(sh("trap 'echo did; exit' USR1; echo on; while :; do sleep 0.05; done"))
        if not call.done.is_set() and controller.protocol.is_open(call.number):
            while not call.out and not call.done.is_set():
                await call.news.park()
        if not call.done.is_set():
            controller.protocol.send_signal(call.number, 10)
            controller.wake()
        await call.wait()
        return call, call.out == b"on\ndid\n"
    if asked == "put":
        call = await controller.ask(Put(path, mode=0o640), content)
        return call, file.exists() and file.read_bytes() == content and file.stat().st_mode & 0o777 == 0o640
    if asked == "put through argv":
        call = await controller.ask(Put(path, argv=(b"sh", b"-c", b'cat >"$0"', path)), content)
        return call, file.exists() and file.read_bytes() == content
    if asked in ("get", "get through argv"):
        readable = directory / "readable"
        readable.write_bytes(content)
        readable.chmod(0o644)
        argv = (b"cat", bytes(readable)) if asked == "get through argv" else None
        call = await controller.ask(Get(bytes(readable), argv=argv))
        done = call.result is not None and call.result.digest == announced(content)["digest"]
        return call, done and call.out == content
    if asked == "stat":
        call = await controller.ask(Stat(bytes(directory)))
        return call, call.result is not None and call.result.stat["type"] == "directory"
    call = await controller.ask(Info())
    return call, call.result is not None and "uid" in call.result.info


@pytest.fixture
def directory(request, open_directory):
    """Where the controller may write, whoever it is."""
    if "user=" in request.node.callspec.params["options"]:
        os.chown(open_directory, request.getfixturevalue("account").pw_uid, -1)
    return open_directory


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("options", FORBIDDEN)
async def test_option_allows_and_refuses(house, directory, options, asked):
    controller = await house.let_in(options)
    call, is_done = await ask(controller, asked, directory)
    if asked in FORBIDDEN[options]:
        assert call.refusal.code == "denied"
        assert not is_done
        left = {path.name for path in directory.iterdir()} - {"readable"}
        assert left == set()
    else:
        assert call.refusal is None, call.refusal
        assert is_done
    assert (await controller.ask(Info())).refusal is None, "the session goes on"


async def test_session_belongs_to_the_key_that_opened_it(house):
    """Who knows its name and is let in with another key neither resumes it nor takes its place."""
    owner = await house.let_in()
    thief = TestController(session=owner.session)
    house.write(line_of(owner), line_of(thief))

    assert (await thief.join(house.connect(), resume=True, attempt=owner.attempt + 1)).session == "unknown"
    assert (await thief.join(house.connect(), resume=False, attempt=owner.attempt + 2)).session == "new"

    assert len(house.sessions.sessions) == 2
    assert (await owner.ask(Info())).refusal is None


async def test_session_is_resumed_under_the_policy_of_now(house):
    controller = await house.let_in("no-pty")
    assert (await controller.ask(sh("true", pty=PtySize()))).refusal.code == "denied"
    await controller.cut()
    house.write(line_of(controller))
    await controller.resume(house)
    assert (await controller.ask(sh("true", pty=PtySize()))).result.exit == 0


@pytest.mark.parametrize("options", ["no-get", "no-exec", "user=daemon"])
async def test_session_is_not_resumed_if_its_controller_may_do_less_now(house, options):
    controller = await house.let_in()
    call = controller.start(sh("exec sleep 60"))
    await controller.ask(Info())
    await controller.cut()
    house.write(line_of(controller, options))
    welcome = await controller.join(house.connect(), resume=True)
    assert welcome.session == "unknown"
    assert house.sessions.sessions == ()
    assert not call.done.is_set()


async def test_session_is_not_resumed_from_elsewhere_if_its_line_says_from(house):
    controller = await house.let_in("from=192.0.2.0/24")
    await controller.cut()
    assert await controller.join(house.connect(peer="198.51.100.1:9"), resume=True) is None
    assert (await controller.join(house.connect(), resume=True)).session == "resumed"


async def test_resize_of_a_terminal_that_was_allowed_works(house):
    controller = await house.let_in("no-put")
    call = controller.start(sh("stty size; read x; stty size", pty=PtySize(), stdin=True))
    await call.wait_line()
    controller.protocol.send_resize(call.number, 50, 60)
    await controller.send(call, b"\n")
    await call.wait()
    assert call.out.split(b"\r\n")[-2] == b"50 60"
