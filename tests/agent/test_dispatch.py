"""Requests over the wire: their answers, their refusals, and that no failure leaves one request."""

from __future__ import annotations

import platform

import pytest
import trio

from pyinfra_agent import _dispatch
from pyinfra_agent._link import Link
from pyinfra_agent._session import AgentSession
from pyinfra_agent_protocol import CloseSession, Exec, Get, Info, InfoResult, Put, RequestRefused, Stat
from pyinfra_agent_protocol._frames import FrameType, encode_header
from pyinfra_agent_protocol._messages import REQUESTS
from tests.agent.helpers import House, TestController, announced, is_alive, sh, until


@pytest.fixture
def house(nursery):
    return House(nursery)


async def test_info_says_who_the_agent_is(house):
    controller = await house.welcome()
    call = await controller.ask(Info())
    assert call.result.info["hostname"] == platform.node()
    assert call.result.info["boot_id"] == "this-boot"
    assert call.result.info["system"] == "Linux"


async def test_every_request_that_the_protocol_knows_has_a_handler():
    assert set(_dispatch.HANDLERS) == set(REQUESTS.values())


async def test_request_while_the_agent_stops_is_refused_and_close_session_is_not(house):
    controller = await house.welcome()
    house.context.is_stopping = True
    assert (await controller.ask(sh("true"))).refusal.code == "stopping"
    assert (await controller.ask(CloseSession())).refusal is None


async def test_malformed_request_is_refused_and_the_session_lives_on(house):
    controller = await house.welcome()
    call = await controller.ask(Exec((b"true",), timeout_ms=0))
    assert call.refusal.code == "bad-request"
    assert (await controller.ask(sh("true"))).result.exit == 0


class Secret(Exception):
    """What a careless library raises: its text quotes what it choked on."""


async def fail(context, channel, request):
    raise Secret("hunter2")


async def fail_in_a_nursery(context, channel, request):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail, context, channel, request)


async def answer_badly(context, channel, request):
    return InfoResult({"what": object()})


@pytest.mark.parametrize("handler", [fail, fail_in_a_nursery, answer_badly])
async def test_unexpected_failure_costs_one_request_and_its_text_is_not_logged(house, monkeypatch, capsys, handler):
    monkeypatch.setattr(_dispatch, "HANDLERS", {**_dispatch.HANDLERS, Info: handler})
    controller = await house.welcome()
    call = await controller.ask(Info())
    assert call.refusal.code == "internal"
    assert "hunter2" not in call.refusal.text
    assert (await controller.ask(sh("echo on"))).out == b"on\n"
    logged = capsys.readouterr().err
    assert "request-failed" in logged
    assert "hunter2" not in logged
    if handler is not answer_badly:
        assert "Secret at test_dispatch.py:" in logged


async def test_refusal_raised_by_a_handler_reaches_the_controller_as_it_is(house, monkeypatch):
    async def refuse(context, channel, request):
        raise RequestRefused("spawn", "no, thank you")

    monkeypatch.setattr(_dispatch, "HANDLERS", {**_dispatch.HANDLERS, Info: refuse})
    controller = await house.welcome()
    call = await controller.ask(Info())
    assert (call.refusal.code, call.refusal.text) == ("spawn", "no, thank you")


async def test_failure_of_the_answer_itself_leaves_the_agent_alive(house, monkeypatch, capsys):
    """Whatever is wrong inside, the other session is not touched."""
    bystander = await house.welcome()
    controller = await house.welcome()

    def fail_to_answer(self, channel, result):
        raise ValueError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(AgentSession, "answer", fail_to_answer)
        assert (await controller.ask(Info())).refusal.code == "internal"
    assert (await bystander.ask(Info())).refusal is None
    assert "ValueError" in capsys.readouterr().err


async def test_protocol_error_while_a_command_prints_costs_the_session_and_not_the_agent(house, monkeypatch):
    """The command goes on printing between the error and the end of its link, which may take a second."""
    send_last = Link._send_last

    async def send_last_slowly(self, code, text):
        await trio.sleep(0.1)
        await send_last(self, code, text)

    monkeypatch.setattr(Link, "_send_last", send_last_slowly)
    bystander = await house.welcome()
    controller = await house.welcome()
    call = controller.start(sh("echo $$; exec yes"))
    pid = int(await call.wait_line())
    await controller.send_plaintext(encode_header(FrameType.RESULT, 0, 1, 0))
    await controller.over.wait()
    assert len(house.sessions.sessions) == 1
    assert (await bystander.ask(sh("echo on"))).out == b"on\n"
    assert is_alive(pid)
    for process in house.supervisor.processes:
        process.kill_tree()


async def test_close_session_ends_at_once_while_a_command_prints_without_end(house):
    controller = await house.welcome()
    printing = controller.start(sh("echo $$; exec yes"))
    pid = int(await printing.wait_line())
    with trio.fail_after(10):
        assert (await controller.ask(CloseSession())).refusal is None
        await controller.over.wait()
        await until(lambda: not house.sessions.sessions)
    assert is_alive(pid), "a closed session's commands run on"
    for process in house.supervisor.processes:
        process.kill_tree()


async def test_close_session_stops_a_transfer_and_leaves_no_file(house, tmp_path):
    controller = await house.welcome()
    target = tmp_path / "target"
    put = controller.start(Put(bytes(target)))
    await controller.send(put, b"x" * 300_000)
    await controller.ask(CloseSession())
    await controller.over.wait()
    await until(lambda: not house.sessions.sessions)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert list(tmp_path.iterdir()) == []


async def test_session_that_was_closed_is_unknown(house):
    controller = await house.welcome()
    await controller.ask(CloseSession())
    await controller.over.wait()
    assert (await controller.join(house.connect(), resume=True)).session == "unknown"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Get(b"/nonexistent/file"), "not-found"),
        (Get(b"/"), "is-directory"),
        (Stat(b"/etc/passwd/x"), None),
        (Exec((b"/nonexistent/program",)), "spawn"),
        (Exec((b"true",), cwd=b"/nonexistent"), "spawn"),
    ],
    ids=str,
)
async def test_refusals_keep_their_codes_and_name_the_path(house, request_, code):
    controller = await house.welcome()
    call = await controller.ask(request_)
    if code is None:
        assert call.result.stat is None
    else:
        assert call.refusal.code == code
        assert "nonexistent" in call.refusal.text or "/" in call.refusal.text


async def test_put_to_a_missing_directory_is_refused_with_its_code(house):
    controller = await house.welcome()
    call = await controller.ask(Put(b"/nonexistent/file"), b"data")
    assert call.refusal.code == "not-found"


async def test_log_says_who_asked_what_and_nothing_of_its_content(house, capsys, tmp_path):
    """No argument, variable, input, output or file content is in the log."""
    controller = await house.welcome()
    script = "echo out-secret; echo err-secret >&2; cat; : arg-secret"
    await controller.ask(sh(script, env={b"PASSWORD": b"env-secret"}, stdin=True), b"in-secret")
    await controller.ask(Put(bytes(tmp_path / "f")), b"file-secret")
    await controller.ask(Get(bytes(tmp_path / "f")))
    await controller.ask(Exec((b"/nonexistent/arg-secret",)))
    await controller.ask(Put(b"/nonexistent/f"), b"file-secret")
    await trio.testing.wait_all_tasks_blocked()
    logged = capsys.readouterr().err
    assert "controller=tester" in logged
    assert "request=exec outcome=done" in logged
    assert "request=exec outcome=spawn" in logged
    assert "secret" not in logged


async def test_each_request_is_answered_exactly_once_for_many_at_a_time(house):
    controller = await house.welcome()
    calls = [controller.start(sh(f"echo {number}")) for number in range(24)]
    for number, call in enumerate(calls):
        assert (await call.wait()).exit == 0
        assert call.out == b"%d\n" % number


async def test_more_requests_than_were_granted_cost_the_session(nursery):
    house = House(nursery, requests_max=2)
    controller = await house.welcome()
    assert controller.welcome.channels == 2
    for _ in range(3):
        controller.start(sh("sleep 100"))
    await controller.over.wait()
    assert [goodbye.code for goodbye in controller.goodbyes] == ["window"]
    assert house.sessions.sessions == ()
    for process in house.supervisor.processes:
        process.kill_tree()


async def test_put_with_a_wrong_digest_is_refused_and_nothing_appears(house, tmp_path):
    controller = await house.welcome()
    call = controller.start(Put(bytes(tmp_path / "f")))
    await controller.send(call, b"data")
    controller.end(call, **{**announced(b"data"), "digest": announced(b"dada")["digest"]})
    await call.wait()
    assert call.refusal is not None
    assert call.refusal.code != "internal"
    assert list(tmp_path.iterdir()) == []


async def test_stranger_with_the_same_session_number_gets_his_own_session(house):
    controller = await house.welcome()
    stranger = TestController(session=controller.session)
    assert (await stranger.join(house.connect(), resume=True)).session == "unknown"
    assert (await stranger.join(house.connect())).session == "new"
    assert (await controller.ask(Info())).refusal is None
