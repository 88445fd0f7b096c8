"""Sessions that live while somebody changes who is let in."""

from __future__ import annotations

import os
import resource
import time

import pytest
import trio
import trio.testing

from pyinfra_agent import _authorized
from pyinfra_agent._settings import OnLost
from pyinfra_agent_protocol import ControllerPayload, Info, decode_answer
from pyinfra_agent_protocol.certificates import AuthorityKey, Certificate, format_authority
from pyinfra_agent_protocol.keys import KeyPair
from tests.agent.helpers import TestController, is_alive, sh, until
from tests.discovery.looker import waited_seconds
from tests.trust.conftest import TrustHouse, line_of


async def ends(house, seconds):
    """Assert that no session is left within so many seconds, in which a busy machine has let us run."""
    began, waited = trio.current_time(), waited_seconds()
    with trio.fail_after(30):
        await until(lambda: not house.sessions.sessions, 0.01)
    assert trio.current_time() - began - (waited_seconds() - waited) <= seconds


async def has_lost_its_session(house, controller, seconds=1.0):
    """Assert that the session ends within so many seconds, and that its controller is told."""
    await ends(house, seconds)
    with trio.fail_after(2):
        await controller.over.wait()
    assert [goodbye.code for goodbye in controller.goodbyes] == ["revoked"]
    assert await controller.join(house.connect()) is None, "it is not let in again"


async def keeps_its_session(house, controller, seconds=1.2):
    """Assert that the session is there after so many seconds."""
    await trio.sleep(seconds)
    assert len(house.sessions.sessions) == 1
    assert (await controller.ask(Info())).refusal is None


async def test_removed_key_loses_its_session_within_a_second(house):
    controller = await house.let_in()
    house.write("# nobody")
    await has_lost_its_session(house, controller)


async def test_removed_file_is_a_removed_key(house):
    controller = await house.let_in()
    (house.state_dir / "authorized_controllers").unlink()
    await has_lost_its_session(house, controller)


async def test_key_that_came_and_went_between_two_looks_loses_its_session(house):
    """Everything is as it was at the look before it was let in, and that is what counts."""
    await trio.testing.wait_all_tasks_blocked()  # the first look: there is no file
    await test_removed_file_is_a_removed_key(house)


@pytest.mark.parametrize("options", ["no-pty", "no-exec", "user=daemon", "from=198.51.100.0/24", "expires=2001-01-01"])
async def test_key_that_may_do_less_loses_its_session_within_a_second(house, options):
    controller = await house.let_in()
    house.write(line_of(controller, options))
    await ends(house, 1.0)


async def test_key_that_may_do_more_keeps_its_session_and_may_do_it(house):
    controller = await house.let_in("no-put,expires=2099-01-01")
    house.write(line_of(controller))
    await keeps_its_session(house, controller)
    assert house.sessions.sessions[0].controller.policy.no_put is False


async def test_editor_that_empties_the_file_before_it_writes_ends_no_session(house):
    controller = await house.let_in()
    path = house.state_dir / "authorized_controllers"
    line = path.read_text()
    for _ in range(3):
        path.write_text("")
        await trio.sleep(0.2)
        path.write_text(line)
        await trio.sleep(0.1)
    await keeps_its_session(house, controller)


async def test_removed_key_loses_sessions_that_wait_for_it_too(house):
    controller = await house.let_in()
    await controller.cut()
    house.write("# nobody")
    await ends(house, 1.0)


async def test_other_controllers_do_not_notice(house):
    controller, other = await house.let_in(), TestController()
    house.write(line_of(controller), line_of(other))
    await other.link(house.nursery, house.connect())
    house.write(line_of(other))
    with trio.fail_after(1):
        await controller.over.wait()
    assert (await other.ask(Info())).refusal is None


@pytest.mark.parametrize("on_lost", OnLost)
async def test_command_of_a_removed_key_runs_on_unheard_or_ends_as_the_settings_say(nursery, tmp_path, on_lost):
    house = TrustHouse(nursery, tmp_path, on_lost=on_lost, grace_seconds=0.2)
    controller = await house.let_in()
    call = controller.start(sh("echo $$; while sleep 0.05; do echo more; done"))
    pid = int(await call.wait_line())
    house.write("# nobody")
    await has_lost_its_session(house, controller)
    if on_lost is OnLost.KILL:
        await until(lambda: not is_alive(pid))
    else:
        await trio.sleep(0.3)
        assert is_alive(pid)
        os.kill(pid, 9)


async def test_removed_controller_that_goes_on_sending_starts_nothing(house, tmp_path):
    """Its link may last a moment longer than its session."""
    controller = await house.let_in()
    house.write("# nobody")
    number = 0
    while not controller.over.is_set() and house.sessions.sessions:
        number += 1
        controller.start(sh(f": >{tmp_path}/during"))
        await trio.sleep(0.01)
    (tmp_path / "during").unlink(missing_ok=True)
    for _ in range(20):
        if controller.protocol.is_attached:
            controller.start(sh(f": >{tmp_path}/after"))
            await trio.lowlevel.checkpoint()
    await controller.over.wait()
    await trio.sleep(0.3)
    assert not (tmp_path / "after").exists()


# --- certificates ---


@pytest.fixture
def fleet():
    return AuthorityKey(os.urandom(32))


async def certified(house, fleet, seconds=3600, serial=7):
    """Return a controller that is let in by a certificate, with a link."""
    house.write(f"cert-authority {format_authority(fleet.public)}")
    controller = CertifiedController()
    now = int(time.time())
    controller.certificate = fleet.sign(
        Certificate(controller.key.public, "controller", ("ci",), now - 60, now + seconds, serial)
    )
    await controller.link(house.nursery, house.connect())
    return controller


class CertifiedController(TestController):
    """A controller that shows a certificate."""

    certificate = b""

    async def join(self, stream, *, resume=False, attempt=None, received=None):
        self.attempt += 1
        payload = ControllerPayload(
            self.session, self.attempt, resume, self.protocol.received, certificate=self.certificate
        )
        self.transport, self.answer = await self.shake_hands(stream, payload.encode())
        self.stream = stream
        self.welcome = decode_answer(self.answer)
        return self.welcome


async def test_certified_controller_is_served_and_resumes(house, fleet):
    controller = await certified(house, fleet)
    assert (await controller.ask(Info())).refusal is None
    await controller.cut()
    await controller.resume(house)
    assert (await controller.ask(Info())).refusal is None
    assert str(house.sessions.sessions[0].controller) == "ci"


@pytest.mark.parametrize("revoked", [f"{7:016x}", "authority"])
async def test_revoked_certificate_loses_its_session_within_a_second(house, fleet, revoked):
    controller = await certified(house, fleet)
    if revoked == "authority":
        house.write("# no authority any more")
    else:
        house.write(revoked, name="revoked")
    await has_lost_its_session(house, controller)


async def test_certificate_that_ends_takes_its_session_with_it(house, fleet, monkeypatch):
    monkeypatch.setattr(_authorized, "CLOCK_SKEW_SECONDS", 0)
    monkeypatch.setattr("pyinfra_agent_protocol.certificates.CLOCK_SKEW_SECONDS", 0)
    controller = await certified(house, fleet, seconds=1)
    assert (await controller.ask(Info())).refusal is None
    await has_lost_its_session(house, controller, seconds=2.5)


async def test_pin_keeps_a_session_whose_certificate_is_revoked_by_its_serial(house, fleet):
    controller = await certified(house, fleet)
    house.write(f"cert-authority {format_authority(fleet.public)}", line_of(controller))
    house.write(f"{7:016x}", name="revoked")
    await keeps_its_session(house, controller)


async def test_certificate_keeps_a_session_whose_pin_is_removed(house, fleet):
    controller = await certified(house, fleet)
    await controller.cut()
    house.write(f"cert-authority {format_authority(fleet.public)}", line_of(controller))
    await controller.resume(house)
    house.write(f"cert-authority {format_authority(fleet.public)}")
    await keeps_its_session(house, controller)


# --- what it costs ---


async def test_watching_costs_next_to_nothing(nursery, tmp_path):
    """Two looks a second; the least of several periods counts, because the test itself is not alone."""
    house = TrustHouse(nursery, tmp_path)
    lines = [line_of(TestController(KeyPair.generate())) for _ in range(200)]
    controller = TestController()
    house.write(*lines, line_of(controller))
    await controller.link(house.nursery, house.connect())
    used = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF)
        await trio.sleep(0.9)
        after = resource.getrusage(resource.RUSAGE_SELF)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"CPU while idle: {min(used) / 0.9:.3%}")
    assert min(used) / 0.9 < 0.02
