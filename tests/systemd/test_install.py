"""`pyinfra-agent install` and `uninstall`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.systemd.helpers import AGENT

_PLACES = ("/etc", "/var/lib", "/usr/local", "/opt", "/root")


def files(machine):
    """Return every path that an installation could have left."""
    listing = machine.run("find", *_PLACES, "-xdev", "!", "-path", "*/log/*", check=True).stdout
    return {line for line in listing.splitlines() if "/systemd/" not in line or "pyinfra" in line}


def test_install_shows_the_key_that_the_agent_has(machine):
    done = machine.install()
    assert f"\n{machine.agent('key').stdout}" in done.stdout
    assert machine.show("UnitFileState") == "enabled"
    assert machine.show("ExecStart").startswith("{ path=" + sys.executable)
    machine.serves()


def test_install_compiles_what_the_service_imports(machine):
    """Its user may not be allowed to, and would compile it at each start."""
    place = "/var/cache/compiled"
    python, *words = AGENT
    done = machine.run(python, "-X", f"pycache_prefix={place}", *words, "install", check=True)
    assert "is enabled and runs" in done.stdout
    compiled = machine.run("find", place, "-name", "*.pyc", check=True).stdout
    for name in ("pyinfra_agent/_serve", "trio/_core/_run", "nacl/bindings/__init__", "asyncio/base_events"):
        assert f"/{name}.{sys.implementation.cache_tag}.pyc\n" in compiled


def test_repeated_install_changes_no_key_and_keeps_serving(service):
    key = service.agent("key").stdout
    service.install("--listen", "0.0.0.0:7963")
    assert service.agent("key").stdout == key
    assert service.status()["listening"] == ["0.0.0.0:7963"]
    service.serves()


def test_uninstall_leaves_nothing(machine):
    """Keys are kept until --purge; afterwards the machine is as it was."""
    before = files(machine)
    machine.install("--socket")
    machine.serves()
    done = machine.agent("uninstall")
    assert done.status == 0, done
    assert "Kept: /var/lib/pyinfra-agent, " in done.stdout
    assert {path for path in files(machine) - before if not path.startswith("/var/lib/pyinfra-agent")} == set()
    assert machine.agent("uninstall", "--purge").status == 0
    assert files(machine) - before == set()
    assert machine.systemctl("list-units", "--all", "--plain", "--no-legend", "pyinfra*").stdout == ""
    assert machine.run("ss", "-Hlnt", "sport", "=", "7963").stdout == ""


def test_uninstall_leaves_commands_alone(service):
    script = "made = connected(); made.run(['sh', '-c', 'setsid sleep 77 > /dev/null 2>&1 < /dev/null &'])"
    service.controller(script)
    assert service.agent("uninstall").status == 0
    assert service.processes("sleep", "77")


def test_agent_of_a_user_runs_sudo(machine):
    """The unit lets an ordinary user's agent do what that user may do in a login, sudo included."""
    machine.run("useradd", "--create-home", "deployer", check=True)
    sudoers = machine.container.path("/etc/sudoers.d/deployer")
    sudoers.write_text("deployer ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    machine.install("--user", "deployer")
    assert machine.controller("print(output(connected(), 'id', '-un'))").stdout == "(0, 'deployer\\n')\n"
    assert machine.controller("print(output(connected(), 'sudo', '-n', 'id', '-un'))").stdout == "(0, 'root\\n')\n"
    assert machine.controller("print(output(connected(), 'pwd'))").stdout == "(0, '/home/deployer\\n')\n"
    assert machine.container.path("/var/lib/pyinfra-agent/key").stat().st_uid >= 1000
    assert machine.status()["sessions"] >= 0, "root may ask another user's agent"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--user", "nobody-here"], "there is no user 'nobody-here'"),
        (["--listen", "nonsense"], "is not HOST:PORT"),
    ],
)
def test_mistake_is_one_line_and_changes_nothing(machine, words, complaint):
    before = files(machine)
    done = machine.agent("install", *words)
    assert done.status == 1
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert files(machine) == before


def test_service_that_cannot_start_is_said_so(machine):
    machine.configure('listen = "192.0.2.1:7963"\n')
    done = machine.agent("install")
    assert done.status == 1
    assert "systemctl restart pyinfra-agent.service failed" in done.stderr
    assert "cannot listen on 192.0.2.1:7963" in machine.journal


def test_install_needs_root(machine):
    done = machine.run("runuser", "-u", "nobody", "--", *AGENT, "install")
    assert (done.status, done.stderr) == (
        1,
        "pyinfra-agent: install changes the system's services: run it as root\n",
    )


def test_without_systemd_the_command_to_run_is_printed():
    """On a machine without systemd nothing is installed, and what is printed runs."""
    if Path("/run/systemd/system").is_dir():
        prefix = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"]
    else:
        prefix = []
    words = [*prefix, *AGENT, "install", "--listen", "127.0.0.1:7000"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "no systemd is running here, so nothing was installed" in done.stderr
    assert done.stdout == f"{' '.join(AGENT)} serve --listen 127.0.0.1:7000\n"
