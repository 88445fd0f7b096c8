"""The containers that other tests stand on: they boot, reach each other, reboot, and leave nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers import CONTROLLER_ADDRESS, Lab, containers_or_skip

CHECKOUT = Path(__file__).parents[1]

HOLDS_A_LAB = """
import sys, time
from tests.containers import Lab
with Lab() as lab:
    lab.boot("web1")
    lab.popen("sleep", "1000")
    print(lab.id, flush=True)
    time.sleep(1000)
"""

CONNECT = "import socket, sys; print(socket.create_connection((sys.argv[1], 7963), 5).recv(100).decode())"
ANSWER = """
import socket
listener = socket.create_server(("", 7963))
print("listening", flush=True)
while True:
    connection, (peer, _) = listener.accept()
    connection.sendall(f"{socket.gethostname()} to {peer}".encode())
    connection.close()
"""


@pytest.fixture(autouse=True, scope="module")
def _able():
    containers_or_skip()


@pytest.fixture(scope="module")
def machines():
    with Lab() as lab:
        yield lab, *lab.boot("web1", "web2")


def traces(lab_id):
    """Return every place in which something of a lab can be seen."""
    found = [*Path("/run/netns").glob(f"*{lab_id}*"), *Path("/run/systemd/nspawn").glob(f"*/*{lab_id}*")]
    found += Path("/sys/fs/cgroup").glob(f"**/*{lab_id}*")
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if lab_id in line]
    found += Path("/run/pyinfra-agent-lab").glob(f"*{lab_id}*")
    return [*found, *living(lab_id)]


def living(lab_id):
    """Return the live processes of a lab, by their cgroup and their words."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            (process / "exe").readlink()  # the dead have none, and others may be slow to reap them
            if lab_id in (process / "cgroup").read_text() + (process / "cmdline").read_text():
                found.append(process)
        except OSError:
            continue
    return found


def test_containers_run_systemd_and_reach_each_other_and_the_controller(machines):
    """A container answers under its own name, to the controller and to another container by their own addresses."""
    lab, web1, web2 = machines
    assert web1.run("systemctl", "is-system-running").stdout == "running\n"
    server = web1.popen(sys.executable, "-c", ANSWER, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "listening\n"
        assert lab.run(sys.executable, "-c", CONNECT, web1.address).stdout == f"web1 to {CONTROLLER_ADDRESS}\n"
        assert web2.run(sys.executable, "-c", CONNECT, web1.address).stdout == f"web1 to {web2.address}\n"
    finally:
        server.kill()
        server.communicate()


def test_commands_give_status_and_output_and_files_are_copied(machines, tmp_path):
    _, web1, _ = machines
    assert web1.run("sh", "-c", "cat; echo error >&2; exit 3", input="in") == (3, "in", "error\n")
    (tmp_path / "file").write_text("text")

    web1.copy_in(tmp_path / "file", "/tmp/file")
    web1.copy_out("/tmp/file", tmp_path / "again")

    assert web1.run("cat", "/tmp/file").stdout == (tmp_path / "again").read_text() == "text"


def test_an_ordinary_user_runs_this_python_with_this_checkout(machines):
    _, web1, _ = machines
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    done = web1.run(*nobody, sys.executable, "-c", "import pyinfra_agent; print(pyinfra_agent.__file__)")
    assert done == (0, f"{CHECKOUT}/agent/pyinfra_agent/__init__.py\n", "")


def test_containers_have_cgroups_of_version_2(machines):
    _, web1, _ = machines
    done = web1.run("systemd-run", "--pipe", "--wait", "-q", "-u", "probe", "cat", "/proc/self/cgroup", check=True)
    assert "0::/system.slice/probe.service\n" in done.stdout
    assert web1.run("stat", "-fc%T", "/sys/fs/cgroup").stdout == "cgroup2fs\n"


def test_reboot_keeps_files_and_nothing_else(machines):
    _, web1, web2 = machines
    boot = web1.run("cat", "/proc/sys/kernel/random/boot_id", "/proc/1/stat").stdout
    web1.run("touch", "/tmp/gone", "/var/kept", check=True)
    other = web2.leader

    web1.reboot()

    assert web1.run("cat", "/proc/sys/kernel/random/boot_id", "/proc/1/stat").stdout != boot
    assert web1.run("ls", "/tmp/gone", "/var/kept").stdout == "/var/kept\n"
    assert not Path("/var/kept").exists()
    assert web2.leader == other


def test_power_off_and_start(machines):
    _, _, web2 = machines
    web2.power_off()
    assert web2.leader is None
    web2.start()
    web2.wait_running()
    web2.kill()
    assert web2.leader is None


def test_closed_lab_leaves_nothing_even_after_a_failure():
    with pytest.raises(ZeroDivisionError), Lab() as lab:  # noqa: PT012 - the failure is to come after them
        lab.boot("web1")
        process = lab.popen("sleep", "1000")
        assert traces(lab.id)
        raise ZeroDivisionError
    assert process.wait(5) == -signal.SIGKILL
    assert traces(lab.id) == []


def test_next_lab_removes_what_a_killed_run_left_and_nothing_of_a_live_one(machines):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_LAB], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        lab_id = process.stdout.readline().strip()
        assert lab_id
        process.send_signal(signal.SIGKILL)
    assert traces(lab_id)

    with Lab():
        assert traces(lab_id) == []

    _, web1, _ = machines
    assert web1.run("systemctl", "is-system-running").stdout == "running\n"
