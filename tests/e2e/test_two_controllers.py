"""Two people use one agent at once, and neither notices the other."""

from __future__ import annotations

import signal

from tests.e2e.helpers import RUN_SECONDS, eventually, failed_with, finish


def test_two_controllers_at_once_each_get_their_own_results(lab):
    alice, bob = lab.controller("alice"), lab.controller("bob")
    agent = lab.agent(alice, bob)
    meeting = lab.directory / "meeting"
    meeting.mkdir()

    def start(controller, name, other):
        # Each waits for the other: neither can have run after the other one.
        wait = f"until test -e {meeting}/{other}; do sleep 0.05; done"
        return lab.keep(
            controller.start_pyinfra(
                agent.name, "exec", "--", f"touch {meeting}/{name}; {wait}; seq 2000; echo this is {name}"
            )
        )

    first, second = start(alice, "alice", "bob"), start(bob, "bob", "alice")

    for name, other, process in (("alice", "bob", first), ("bob", "alice", second)):
        done = finish(process)
        assert done.status == 0, done.text
        assert f"] this is {name}\n" in done.text
        assert f"this is {other}\n" not in done.text
        assert done.text.count(f"[{agent.name}] ") >= 2000


def test_controller_that_is_killed_leaves_its_command_running_and_the_other_one_alone(lab):
    alice, bob = lab.controller("alice"), lab.controller("bob")
    agent = lab.agent(alice, bob)
    started, ended, go = (lab.directory / name for name in ("started", "ended", "go"))
    command = f"touch {started}; until test -e {go}; do sleep 0.05; done; echo ended > {ended}"
    killed = lab.keep(alice.start_pyinfra(agent.name, "server.shell", command))
    eventually(started.exists, RUN_SECONDS, "the command's start")

    killed.send_signal(signal.SIGKILL)
    killed.wait(5)

    done = bob.pyinfra(agent.name, "exec", "--", "echo", "undisturbed")
    assert done.status == 0, done.text
    assert "] undisturbed\n" in done.text
    go.touch()
    eventually(ended.exists, 5, "the end of the command whose controller is gone")
    agent.serves(alice)


def test_controller_whose_key_is_taken_out_is_refused_and_the_other_one_is_not(lab):
    alice, bob = lab.controller("alice"), lab.controller("bob")
    agent = lab.agent(alice, bob)
    authorized = agent.state_dir / "authorized_controllers"
    agent.serves(alice)

    authorized.write_text(f"{bob.identity()}\n")

    failed_with(alice.pyinfra(agent.name, "exec", "--", "true"), "does not let this controller in")
    agent.serves(bob)
