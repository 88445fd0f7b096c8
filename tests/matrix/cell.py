"""What must hold with one pyinfra on one Python: run by the interpreter of a cell, `python cell.py [CHECK ...]`.

Each function called `check_*` is one check.  One line of JSON per check is written to standard output, with the
traceback of what failed.  The same checks run with every generation of pyinfra; where generations differ, that
difference is what is checked.  Nothing is used that pyinfra does not bring, so a cell installs nothing for tests.
"""

from __future__ import annotations

import contextlib
import getpass
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import timeit
import traceback
from importlib import metadata
from pathlib import Path

from gevent import monkey

monkey.patch_all()

# The stubs below stand for programs that ask, or that end the machine; the loopback agent inherits this path.
STUBS = Path(tempfile.mkdtemp(prefix="matrix-stubs-"))
REAL_PATH = os.environ["PATH"]
os.environ["PATH"] = f"{STUBS}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{REAL_PATH}"

from pyinfra.api import Config, Host, Inventory, MaskString, State, StringCommand  # noqa: E402
from pyinfra.api.connect import connect_all, disconnect_all  # noqa: E402
from pyinfra.api.exceptions import ConnectError, InventoryError  # noqa: E402
from pyinfra.api.operation import add_op  # noqa: E402
from pyinfra.api.operations import run_ops  # noqa: E402
from pyinfra.api.state import BaseStateCallback  # noqa: E402
from pyinfra.facts.files import Directory, File, FindFiles, Link, Sha1File  # noqa: E402
from pyinfra.facts.server import Command, Date, Hostname, Kernel, LinuxName, Users  # noqa: E402
from pyinfra.operations import files, server  # noqa: E402

import pyinfra_agent_connector  # noqa: E402 - gevent patches first, as pyinfra's command does

VERSION = metadata.version("pyinfra")
GENERATION = int(VERSION.split(".")[0])
PREFIX = "_" if GENERATION >= 3 else ""
HERE = Path(__file__).resolve().parent
OTHER = "nobody"
SECRET = "it's $(a) secret"

SUDO = r"""#!/bin/sh
# What pyinfra uses of sudo: it wants a password, and then runs the command as the same user.
asks=
while :; do case $1 in
    -A) asks=1; shift ;;
    -H | -k | -E | -i | -n) shift ;;
    -u) shift 2 ;;
    *) break ;;
esac; done
[ "$asks" ] || { echo "sudo: a password is required" >&2; exit 1; }
case $SUDO_ASKPASS in */*) ;; *) SUDO_ASKPASS=./$SUDO_ASKPASS ;; esac
[ "$("$SUDO_ASKPASS")" = "it's \$(a) secret" ] || { echo "sudo: wrong password" >&2; exit 1; }
[ -n "$(tr '\0' ' ' < /proc/$$/cmdline | grep secret)" ] && { echo "password in argv" >&2; exit 1; }
unset SUDO_ASKPASS PYINFRA_SUDO_PASSWORD
exec "$@"
"""
DOAS = """#!/bin/sh
echo "doas $*" >> "$DOAS_LOG"
while :; do case $1 in -n) shift ;; -u) shift 2 ;; *) break ;; esac; done
exec "$@"
"""
REBOOT = """#!/bin/sh
kill -9 "$(cat "$AGENT_PID")"
sleep 30
"""


# --- means ---


@contextlib.contextmanager
def connected(name="@agent/loopback", **data):
    """Yield a connected host, as a program that uses pyinfra's API has it."""
    state = State(Inventory(([name], data)), Config())
    connect_all(state)
    host = state.inventory.get_host(name)
    try:
        yield host
    finally:
        disconnect_all(state)


def sh(host, script, **arguments):
    """Run *script* with arguments named without underscore; return status, stdout and stderr lines."""
    result = host.run_shell_command(
        script if isinstance(script, StringCommand) else StringCommand(script), **prefixed(arguments)
    )
    if GENERATION >= 3:
        status, output = result
        return status, output.stdout_lines, output.stderr_lines
    return result


def prefixed(arguments):
    return {f"{PREFIX}{name}": value for name, value in arguments.items()}


@contextlib.contextmanager
def stubs(**scripts):
    """Let programs of these names be *scripts*."""
    for name, script in scripts.items():
        (STUBS / name).write_text(script)
        (STUBS / name).chmod(0o755)
    try:
        yield
    finally:
        for name in scripts:
            (STUBS / name).unlink()


@contextlib.contextmanager
def directory(mode=0o755):
    with tempfile.TemporaryDirectory(prefix="matrix-") as path:
        os.chmod(path, mode)
        yield Path(path)


@contextlib.contextmanager
def current(path):
    """Let *path* be the current directory, which a loopback agent inherits."""
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def pyinfra(*words, cwd=None):
    """Run pyinfra's own command and return its status and what it said."""
    yes = ["-y"] if GENERATION >= 3 else []
    done = subprocess.run(
        [Path(sys.executable).parent / "pyinfra", *yes, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    return done.returncode, re.sub("\x1b\\[[0-9;]*m", "", done.stdout)


def can_sudo():
    done = subprocess.run(["sudo", "-n", "-u", OTHER, "true"], check=False, capture_output=True)
    return os.geteuid() == 0 and done.returncode == 0


def raises(kind, call, *arguments, **keywords):
    """Return the text of the exception of *kind* that the call raises."""
    try:
        call(*arguments, **keywords)
    except kind as error:
        text = str(error)
        assert len(text.splitlines()) == 1, text
        return text
    raise AssertionError(f"no {kind}")


# --- the form ---


def check_form():
    """Pyinfra is handed what its generation documents."""
    connector = pyinfra_agent_connector.connector
    (entry,) = (e for e in metadata.entry_points(group="pyinfra.connectors") if e.name == "agent")
    assert entry.load() is connector
    if GENERATION >= 3:
        assert inspect.isclass(connector)
        assert connector.handles_execution
        return
    assert inspect.ismodule(connector)
    run = (
        "state, host, command, get_pty=False, timeout=None, stdin=None, success_exit_codes=None, print_output=False,"
        " print_input=False, return_combined_output=False, use_sudo_password=False, **command_kwargs"
    )
    put = "state, host, filename_or_io, remote_filename, print_output=False, print_input=False, **command_kwargs"
    get = "state, host, remote_filename, filename_or_io, print_output=False, print_input=False, **command_kwargs"
    rsync = "state, host, src, dest, flags, print_output=False, print_input=False, **command_kwargs"
    for name, wanted in {
        "make_names_data": "hostname=None",
        "connect": "state, host",
        "disconnect": "state, host",
        "run_shell_command": run,
        "put_file": put,
        "get_file": get,
        "check_can_rsync": "host",
        "rsync": rsync,
    }.items():
        parameters = inspect.signature(getattr(connector, name)).parameters.values()
        found = ", ".join(str(p.replace(annotation=p.empty)) for p in parameters)
        assert found == wanted, f"{name}({found})"
    if GENERATION == 1:
        assert connector.EXECUTION_CONNECTOR is True
    else:
        assert connector.Meta.handles_execution
        assert connector.Meta.keys_prefix == "agent"
        assert connector.DATA_KEYS.resume_timeout == "agent_resume_timeout"
        assert "TCP port" in connector.Meta.DataKeys.port


def check_loading():
    """The entry point costs under 50 us after the first time, and brings nothing that a run by SSH does not need."""
    runs = timeit.repeat(
        "pyinfra_agent_connector.connector", globals={"pyinfra_agent_connector": pyinfra_agent_connector}, number=1000
    )
    assert min(runs) / 1000 < 50e-6
    program = """
import sys
from gevent import monkey
monkey.patch_all()
import pyinfra.api
from pyinfra.api import Config, Inventory, State
State(Inventory((["a-host"], {})), Config())
print(*sorted(name for name in sys.modules if name.startswith("pyinfra_agent")))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pyinfra_agent_connector.faces" in loaded
    assert not {"pyinfra_agent_protocol", "pyinfra_agent_connector.client"} & loaded, loaded
    names = [f"@agent/web{number}:7964" for number in range(1000)]
    started = time.perf_counter()
    for name in names:
        list(pyinfra_agent_connector.connector.make_names_data(name.partition("/")[2]))
    ours = time.perf_counter() - started
    assert ours < 0.5, ours
    # A tenth of them: pyinfra 2 takes up to 10 ms for each, in which it loads every connector twice.
    started = time.perf_counter()
    inventory = Inventory((names[:100], {}))
    seconds = time.perf_counter() - started
    assert len(inventory.hosts) == 100
    return {
        "entry_point_us": round(min(runs) * 1000, 3),
        "names_data_us": round(ours * 1000),
        "pyinfra_per_name_ms": round(seconds * 10, 1),
    }


def check_data_precedence():
    """In pyinfra 1 a connector's data wins over the host's own; from 2 on it is the other way round."""
    inventory = Inventory(([("@agent/web1:99", {"agent_port": 7964, "agent_trust": "strict"})], {}))
    data = inventory.get_host("@agent/web1:99").data
    assert data.agent_trust == "strict"
    assert data.agent_host == "web1"
    assert data.agent_port == (99 if GENERATION == 1 else 7964)
    # What is given with --data wins in all.
    inventory = Inventory((["@agent/web1:99"], {}), override_data={"agent_port": 5})
    assert inventory.get_host("@agent/web1:99").data.agent_port == 5


# --- results ---


def check_results():
    with connected() as host:
        assert host.connection if GENERATION < 3 else host.connected
        assert sh(host, "echo out; sleep 0.1; echo err >&2") == (True, ["out"], ["err"])
        assert sh(host, "exit 3")[0] is False
        assert sh(host, "exit 3", success_exit_codes=[0, 3])[0] is True
        assert sh(host, "kill -9 $$", success_exit_codes=[137])[0] is True
        # Bytes that are no text: pyinfra 3 gets them back from its lines, the others print lines as they are.
        status, stdout, _ = sh(host, r"printf 'a\377b\nlast'")
        assert (status, stdout) == (True, ["a\udcffb" if GENERATION >= 3 else r"a\xffb", "last"])
        if GENERATION < 3:
            combined = host.run_shell_command("echo out; sleep 0.1; echo err >&2", return_combined_output=True)
            assert combined == (True, [("stdout", "out"), ("stderr", "err")])
            assert host.run_shell_command("true") == (True, [], [])
        command = StringCommand("echo", MaskString("s3cret"))
        assert "s3cret" not in str(command)
        assert sh(host, command)[1] == ["s3cret"]


def check_arguments():
    """Every global argument does what its name says."""
    with directory() as place, connected() as host:
        (place / "sub dir").mkdir()
        # pyinfra 1.7 hands values to the shell unquoted.
        text = "plain" if VERSION == "1.7" else "it's two"
        assert sh(host, 'echo "$A|$B"', env={"A": text, "B": "x"})[1] == [f"{text}|x"]
        assert sh(host, "pwd", chdir=str(place))[1] == [str(place)]
        assert sh(host, 'echo "$0"', shell_executable="bash")[1] == ["bash"]
        assert sh(host, "test -t 1 && echo yes", get_pty=True)[1][0].strip() == "yes"
        assert sh(host, "test -t 1 || echo no", get_pty=False)[1] == ["no"]
        assert sh(host, "cat", stdin="one")[1] == ["one"]
        assert sh(host, "cat", stdin=["one", "two"])[1] == ["one", "two"]
        assert sh(host, "cat", stdin=io.StringIO("one\ntwo\n"))[1] == ["one", "two"]
        started = time.monotonic()
        text = raises(TimeoutError, sh, host, "sleep 30", timeout=1)
        assert "did not end within 1 s" in text
        assert time.monotonic() - started < 10
        assert sh(host, "true", timeout=5)[0]


def check_su():
    if os.geteuid():
        return "needs root"
    with connected() as host:
        assert sh(host, "id -un", su_user=OTHER, su_shell="sh")[1] == [OTHER]
        assert sh(host, "id -un", su_user="root", use_su_login=True)[1][-1] == "root"
        status, stdout, _ = sh(
            host, 'echo "$A"; pwd', su_user=OTHER, su_shell="bash", preserve_su_env=True, env={"A": "x"}, chdir="/usr"
        )
        assert (status, stdout) == (True, ["x", "/usr"])
    return None


def check_sudo():
    if not can_sudo():
        return "needs root and sudo"
    with connected() as host, directory(0o777) as place:
        assert sh(host, "id -un", sudo=True)[1] == ["root"]
        assert sh(host, "id -un", sudo=True, sudo_user=OTHER)[1] == [OTHER]
        assert sh(host, "id -un", sudo=True, use_sudo_login=True)[1][-1] == "root"
        assert sh(host, 'echo "$A"', sudo=True, sudo_user=OTHER, env={"A": "x"}, preserve_sudo_env=True)[1] == ["x"]
        remote = str(place / "theirs")
        assert host.put_file(io.BytesIO(b"content"), remote, **prefixed({"sudo": True, "sudo_user": OTHER})) is True
        assert Path(remote).owner() == OTHER
        Path(remote).chmod(0o600)
        got = io.BytesIO()
        assert host.get_file(remote, got, **prefixed({"sudo": True, "sudo_user": OTHER})) is True
        assert got.getvalue() == b"content"
    return None


def check_sudo_password():
    """A sudo that asks: pyinfra gets the password once, and nobody else gets to see it."""
    if GENERATION == 1:
        from pyinfra.api.connectors import util
    else:
        from pyinfra.connectors import util
    asked = []

    def answer(prompt):
        asked.append(prompt)
        return SECRET

    util.getpass = answer
    with directory() as place, current(place), stubs(sudo=SUDO):
        with connected() as host:
            # Not asked for: the command fails, pyinfra asks, and tries again with the same input.
            assert sh(host, "cat", sudo=True, stdin="again") == (True, ["again"], [])
            if GENERATION < 3:
                assert sh(host, "id -un", sudo=True, use_sudo_password=True)[0]
                assert sh(host, "id -un", sudo=True, use_sudo_password=SECRET)[0]
                assert sh(host, "id -un", sudo=True, use_sudo_password=lambda: SECRET)[0]
                # Without sudo it means nothing.
                assert sh(host, "echo a && echo b", use_sudo_password=True)[1] == ["a", "b"]
                # From somebody else's loop over hosts, as pyinfra passes it.
                ok, _ = host.run_shell_command("id -un", use_sudo_password=True, sudo=True, return_combined_output=True)
                assert ok
            else:
                assert sh(host, "id -un", sudo=True, sudo_password=SECRET)[0]
            arguments = prefixed({"sudo": True, **({"use_sudo_password": True} if GENERATION < 3 else {})})
            assert host.put_file(io.BytesIO(b"x"), str(place / "file"), **arguments)
            assert len(asked) == 1, asked
            left = [path for path in host.connector_data.values() if isinstance(path, str) and "askpass" in path]
        # The script does not outlive the connection.
        assert not [path for path in left if os.path.exists(path)]
        assert not list(place.glob("*askpass*"))


def check_doas():
    with directory() as place, stubs(doas=DOAS):
        os.environ["DOAS_LOG"] = str(place / "log")
        with connected() as host:
            assert sh(host, "echo ok", doas=True, doas_user=OTHER)[1] == ["ok"]
        assert f"doas -n -u {OTHER} sh -c" in (place / "log").read_text()


# --- files, facts, operations ---


def check_files():
    with directory() as place, connected() as host:
        content = os.urandom(100_000)
        local, remote, back = place / "local", place / "it's é", place / "back"
        local.write_bytes(content)
        assert host.put_file(str(local), str(remote)) is True
        assert host.get_file(str(remote), str(back)) is True
        assert back.read_bytes() == content
        # As pyinfra's own commands call it.
        assert host.put_file(io.StringIO("é\n"), str(remote), remote_temp_filename="/tmp/unused") is True
        got = io.BytesIO()
        assert host.get_file(str(remote), got, remote_temp_filename="/tmp/unused") is True
        assert got.getvalue() == "é\n".encode()
        assert not os.path.exists("/tmp/unused")
        assert "missing" in raises(OSError, host.get_file, str(place / "missing"), str(back))
        assert back.read_bytes() == content
        assert "missing" in raises(OSError, host.put_file, str(local), str(place / "missing" / "file"))


def check_facts():
    with directory() as place, connected() as host:
        (place / "file").write_text("content")
        (place / "link").symlink_to("file")
        assert host.get_fact(Hostname) == os.uname().nodename
        assert host.get_fact(Kernel) == os.uname().sysname
        assert host.get_fact(LinuxName)
        assert host.get_fact(Date)
        assert "root" in host.get_fact(Users)
        assert host.get_fact(File, path=str(place / "file"))["size"] == 7
        assert host.get_fact(Directory, path=str(place))["mode"] == 755
        assert host.get_fact(Link, path=str(place / "link"))["link_target"] == "file"
        assert host.get_fact(Sha1File, path=str(place / "file")) == "040f06fd774092478d450774f5ba30c5da78acc8"
        assert str(place / "file") in host.get_fact(FindFiles, str(place))
        assert host.get_fact(File, path=str(place / "missing")) is None
        assert host.get_fact(Command, "echo a; echo b") in ("a\nb", "a")


def check_operations():
    """By the API: an operation changes something once."""
    with directory() as place, connected() as host:
        state = host.state
        add_op(state, files.put, src=io.StringIO("x\n"), dest=str(place / "file"), **prefixed({"env": {"A": "b"}}))
        add_op(state, server.shell, commands=["echo $A > shell"], **prefixed({"chdir": str(place), "env": {"A": "b"}}))
        run_ops(state)
        assert (place / "file").read_text() == "x\n"
        assert (place / "shell").read_text() == "b\n"


def check_rsync():
    if not shutil.which("rsync"):
        return "needs rsync"
    with directory() as place, connected() as host:
        (place / "src").mkdir()
        (place / "src" / "file").write_text("x")
        host.check_can_rsync()
        assert host.rsync(f"{place}/src/", f"{place}/dest/", ["-a"]) is True
        assert (place / "dest" / "file").read_text() == "x"
        with contextlib.suppress(OSError):
            raise AssertionError(host.rsync(f"{place}/missing/", f"{place}/dest/", ["-a"]))
    return None


# --- coming and going ---


def check_reboot():
    """A connection that ends with the command is -1 to pyinfra, at once; and another connection follows."""
    if os.environ.get("AGENT_PID") is None:
        os.environ["AGENT_PID"] = str(STUBS / "agent-pid")
    with stubs(reboot=REBOOT), connected() as host:
        pid_of_agent(host)
        started = time.monotonic()
        assert sh(host, "reboot", success_exit_codes=[0, -1])[0] is True
        assert time.monotonic() - started < 5
        if GENERATION >= 3:
            host.disconnect()
        else:
            host.connection = None  # and nobody disconnects
        host.connect()
        assert sh(host, "echo back")[1] == ["back"]
        if GENERATION < 3:
            pid_of_agent(host)
            started = time.monotonic()
            add_op(host.state, server.reboot, delay=0, interval=1, reboot_timeout=5)
            run_ops(host.state)
            assert time.monotonic() - started < 10
            assert sh(host, "echo back")[1] == ["back"]


def pid_of_agent(host):
    agent = host.connector._agent if GENERATION >= 3 else host.connector_data["agent_host_object"]
    Path(os.environ["AGENT_PID"]).write_text(str(agent._loopback._process.pid))


def check_disconnect():
    """It does what pyinfra 1 and 2 leave to a connector that has this function; twice is harmless."""
    seen = []

    class Callbacks(BaseStateCallback):
        @staticmethod
        def host_disconnect(state, host):
            seen.append(host.name)

    with connected() as host:
        host.state.add_callback_handler(Callbacks())
        host.disconnect()
        # The first releases of pyinfra 3 forget it.
        forgotten = "return disconnect_func" in inspect.getsource(Host.disconnect) and GENERATION >= 3
        assert seen == ([] if forgotten else ["@agent/loopback"])
        assert not host.connected
        assert "not connected" in raises(OSError, sh, host, "true")
        host.connect()
        assert sh(host, "true")[0]


def check_connect_errors():
    mistakes = [
        ("@agent/127.0.0.1:1", {}, "nothing listens"),
        ("@agent/127.0.0.1", {"agent_public_key": "nonsense"}, "is no key line"),
        ("@agent/no-such-host.invalid", {}, "no host that this machine can find"),
    ]
    if GENERATION < 3:  # which checks the types of host data itself
        mistakes.append(("@agent/web1", {"agent_resume_timeout": "soon"}, "agent_resume_timeout is 'soon': give a"))
    for name, data, words in mistakes:
        host = State(Inventory(([name], data)), Config()).inventory.get_host(name)
        connector = pyinfra_agent_connector.connector
        if GENERATION >= 3:
            assert words in raises(ConnectError, connector(host.state, host).connect)
        else:
            assert words in raises(ConnectError, connector.connect, host.state, host)
    for name in ("@agent/a b", "@agent/web1:0"):
        assert "is not understood" in raises(InventoryError, Inventory, ([name], {}))


# --- the command ---


def check_command():
    """The real command: a deploy twice, of which the second changes nothing."""
    inventory = os.environ.get("MATRIX_INVENTORY", "@agent/loopback")
    with directory() as place:
        words = [inventory, "--data", f"site_dir={place}/site", HERE / "deploy.py"]
        status, said = pyinfra(*words, cwd=place)
        assert status == 0, said
        assert len(re.findall(r"\] Success", said)) == 11, said
        assert "seen: nothing" in said
        assert (place / "fetched-site.conf").read_text() == f"# {inventory}\nroot = {place}/site/current\n"
        status, said = pyinfra(*words, cwd=place)
        assert status == 0, said
        assert (len(re.findall(r"\] Success", said)), len(re.findall(r"\] No changes", said))) == (0, 10), said
        assert f"seen: first-step|{place}/site|from stdin" in said
        if inventory == "@agent/loopback":
            assert (place / "site" / "STEPS").read_text() == f"first-step|{place}/site|from stdin\n"
            assert (place / "site" / "robots.txt").stat().st_mode & 0o7777 == 0o640


def check_site_example():
    """The example of the README, for the pyinfra that it is written for."""
    if tuple(map(int, VERSION.split(".")[:2])) < (3, 10):
        return "the example is written for pyinfra 3.10"
    with directory() as place:
        for wanted in ("Success", "No changes"):
            words = ["@agent/loopback", "--data", f"site_dir={place}/site", HERE.parent.parent / "examples" / "site.py"]
            status, said = pyinfra(*words, cwd=place)
            assert status == 0, said
            assert len(re.findall(rf"\] {wanted}", said)) >= 10, said
    return None


def check_command_errors():
    """Each mistake is a line, and a status that is not 0."""
    with directory() as place:
        for words, expected in (
            (["@agent/127.0.0.1:1", "exec", "--", "true"], "nothing listens"),
            (["@agent/a b", "exec", "--", "true"], "is not understood"),
            (["@agent/loopback", "exec", "--", "exit 3"], "Error"),
            (["@agent/loopback", "exec", "--", r"printf '\377\n' >&2; exit 3"], r"\xff"),
        ):
            status, said = pyinfra(*words, cwd=place)
            assert status != 0, said
            assert expected in said, said
            assert "Traceback" not in said, said


def check_other_connectors():
    """A pyinfra that is too new, or too old, is told so by those hosts alone that want this connector."""
    program = """
import sys
from importlib import metadata
real = metadata.version
metadata.version = lambda name: VERSION if name == "pyinfra" else real(name)
(command,) = (e for e in metadata.entry_points(group="console_scripts") if e.name == "pyinfra")
sys.exit(command.load()())
"""
    for version, inventory, fine in (
        ("0.16.2", "@agent/web1", False),
        ("1.6.3", "@agent/web1", False),
        ("4.0", "@agent/web1", False),
        ("4.0", "@local", True),
    ):
        python = [sys.executable, "-W", "ignore", "-c", program.replace("VERSION", repr(version))]
        done = subprocess.run(
            [*python, *(["-y"] if GENERATION >= 3 else []), inventory, "exec", "--", "echo fine"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert (done.returncode == 0) is fine, said
        wanted = f"the agent connector works with pyinfra 1.7 to 3, not with {version}"
        assert (wanted in said.replace("\n", " ")) is not fine, said
        assert "Traceback" not in said, said


def main():
    """Run every check; return how many failed."""
    os.environ.setdefault("USER", getpass.getuser())
    home = tempfile.mkdtemp(prefix="matrix-home-")
    os.environ.setdefault("PYINFRA_AGENT_HOME", home)
    failed = 0
    checks = {name[6:]: check for name, check in globals().items() if name.startswith("check_")}
    for name in sys.argv[1:] or checks:
        check = checks[name]
        started = time.monotonic()
        error, note = "", None
        # What pyinfra prints is not ours to read.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            try:
                note = check()
            except BaseException:
                error = traceback.format_exc()
                failed += 1
        seconds = round(time.monotonic() - started, 2)
        print(json.dumps({"check": name, "error": error, "note": note, "seconds": seconds}), flush=True)
    shutil.rmtree(STUBS)
    shutil.rmtree(home)
    return failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
