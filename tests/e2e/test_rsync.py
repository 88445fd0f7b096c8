"""`files.rsync` by pyinfra's own command, and `rsync -e 'pyinfra-agent rsh'` by hand, against a real agent."""

from __future__ import annotations

import filecmp
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.e2e.helpers import AGENT, RESUME_SECONDS, RUN_SECONDS, eventually, finish, run

MIB = 1 << 20
OTHER = "nobody"
NOT_AN_ERROR = ("The `files.rsync` operation is in alpha!", "Loading: sync.py", "trying to resume")

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")


def deploy(controller, src, dest, *flags):
    """Write a deployment that is one `files.rsync`; return its name."""
    text = f"from pyinfra.operations import files\nfiles.rsync(src={str(src)!r}, dest={str(dest)!r}, flags={flags!r})\n"
    (controller.directory / "sync.py").write_text(text)
    return "sync.py"


def make_tree(directory):
    """Make 300 files in directories, with all that names and inodes may have."""
    for number in range(290):
        path = directory / f"part{number % 7}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 13))
        path.chmod(0o600 + number % 0o100)
        os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
    for number, name in enumerate(
        ["naïve ü 漢字", "two words", "new\nline", "tab\t", "'quotes\"", "-n", "$HOME `id`", "back\\slash", "a:b", "*"]
    ):
        (directory / name).write_text(str(number))
    os.link(directory / "two words", directory / "hard link")
    (directory / "link").symlink_to("part1/file1")
    (directory / "dangling").symlink_to("/nowhere/at all")
    (directory / "empty").mkdir()
    return directory


def listing(directory):
    """Return what stands in *directory*: names, types, modes, times, links, contents."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(directory))] = (status.st_mode, int(status.st_mtime), content)
    return found


def inodes(directory):
    return {path: (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in directory.rglob("*")}


def succeeded(done):
    assert done.status == 0, done.text
    assert "Traceback" not in done.text, done.text


def error_of(done):
    """Return the one error of a failed run, beside pyinfra's warning and what became of the connection."""
    assert done.status != 0, done.text
    assert "Traceback" not in done.text, done.text
    lines = [line for line in done.said if not any(text in line for text in NOT_AN_ERROR)]
    assert len(lines) == 1, lines
    return lines[0]


# --- files.rsync ---


def test_tree_arrives_as_it_is_and_a_second_run_changes_nothing(shared, tmp_path):
    agent, controller = shared
    source = make_tree(tmp_path / "source")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "left over").touch()
    script = deploy(controller, f"{source}/", copy, "-aH", "--delete", "--exclude 'file*6'")

    succeeded(controller.pyinfra(agent.name, script))

    wanted = {name: value for name, value in listing(source).items() if not ("file" in name and name.endswith("6"))}
    assert listing(copy) == wanted
    assert len(wanted) > 280
    assert (copy / "hard link").samefile(copy / "two words")
    before = inodes(copy)
    succeeded(controller.pyinfra(agent.name, script))
    assert inodes(copy) == before


def test_options_reach_rsync(shared, tmp_path):
    """A dry run that itemizes: its lines are printed, and nothing is written."""
    agent, controller = shared
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    script = deploy(controller, f"{source}/", tmp_path / "copy", "-rn", "--itemize-changes")

    done = controller.pyinfra(agent.name, "-vvv", script)

    succeeded(done)
    assert f"[{agent.name}] <f+++++++++ file" in done.text
    assert not (tmp_path / "copy").exists()


@pytest.fixture
def others_directory():
    if os.geteuid() != 0 or shutil.which("sudo") is None:
        pytest.skip("needs root and sudo, to become another user without a password")
    with tempfile.TemporaryDirectory() as directory:
        user = pwd.getpwnam(OTHER)
        os.chown(directory, user.pw_uid, user.pw_gid)
        yield Path(directory)


def test_sudo_writes_as_the_user_it_leads_to(shared, tmp_path, others_directory):
    agent, controller = shared
    source = make_tree(tmp_path / "source")
    for arguments, owner in ((("--sudo-user", OTHER), OTHER), ((), "root")):
        copy = others_directory / owner
        script = deploy(controller, f"{source}/", copy, "-rlt")
        done = controller.pyinfra(agent.name, "-vv", "--sudo", *arguments, script)
        succeeded(done)
        assert f">>> sudo -H -n {'-u nobody ' if arguments else ''}sh -c 'exec rsync --server " in done.text
        assert {path.owner() for path in copy.rglob("*") if not path.is_symlink()} == {owner}
        assert listing(copy).keys() == listing(source).keys()


def test_large_file_arrives_whole_and_then_as_its_differences(shared, tmp_path):
    agent, controller = shared
    source = tmp_path / "large"
    source.write_bytes(os.urandom(64 * MIB))
    copy = tmp_path / "copy"
    script = deploy(controller, source, copy, "-t", "--stats")
    succeeded(controller.pyinfra(agent.name, script))
    assert filecmp.cmp(source, copy, shallow=False)
    with source.open("r+b") as file:
        file.seek(10 * MIB)
        file.write(b"changed")

    done = controller.pyinfra(agent.name, "-vvv", script)

    succeeded(done)
    assert filecmp.cmp(source, copy, shallow=False)
    [sent] = [line for line in done.text.splitlines() if "Total bytes sent:" in line]
    assert int(sent.rpartition(":")[2].replace(",", "")) < MIB


def test_target_without_rsync_fails_with_one_line(shared, tmp_path):
    agent, controller = shared
    source = tmp_path / "file"
    source.touch()
    script = deploy(controller, source, tmp_path / "copy", "-t", "--rsync-path=/nowhere/rsync")
    error = error_of(controller.pyinfra(agent.name, script))
    assert f"127.0.0.1:{agent.port}: there is no rsync on that machine, install it there" in error


def test_controller_without_rsync_fails_with_one_line(shared, tmp_path):
    agent, controller = shared
    script = deploy(controller, "/etc/hostname", tmp_path / "copy")
    words = controller._words(agent.name, [script], {})
    done = run(*words, cwd=controller.directory, env=controller.environment | {"PATH": str(tmp_path)})
    assert "The `rsync` binary is not available on this system: install rsync here" in done.text
    assert done.status != 0


def test_error_of_rsync_is_shown(shared, tmp_path):
    agent, controller = shared
    script = deploy(controller, tmp_path / "missing", tmp_path / "copy", "-a")
    error = error_of(controller.pyinfra(agent.name, script))
    assert "missing" in error
    assert "No such file or directory" in error


def test_killed_agent_fails_the_operation_with_one_line_in_time(lab, tmp_path):
    controller = lab.controller()
    agent = lab.agent(controller)
    source = tmp_path / "large"
    source.write_bytes(os.urandom(16 * MIB))
    directory = tmp_path / "target"
    directory.mkdir()
    (directory / "large").write_text("old")
    script = deploy(controller, source, f"{directory}/", "-t", "--bwlimit=2m")
    process = lab.keep(controller.start_pyinfra(agent.name, script))
    eventually(lambda: [path for path in directory.glob(".large.*") if path.stat().st_size], RUN_SECONDS, "a transfer")

    agent.process.send_signal(signal.SIGKILL)
    done = finish(process, RESUME_SECONDS + 10)

    assert "rsync failed: " in error_of(done)
    # Its other side has found its input at an end.
    eventually(lambda: os.listdir(directory) == ["large"], what="the end of the remote rsync")
    assert (directory / "large").read_text() == "old"


@pytest.fixture
def half_done(shared, tmp_path):
    """A transfer that is under way, at both of its ends: a directory and the options for a slow one."""
    (tmp_path / "large").write_bytes(os.urandom(16 * MIB))
    directory = tmp_path / "target"
    directory.mkdir()

    def is_under_way():
        return any(path.stat().st_size for path in directory.glob(".large.*"))

    return directory, is_under_way


@pytest.mark.parametrize("reach", ["terminal", "process"])
def test_interrupted_pyinfra_leaves_nothing_on_the_target(reach, shared, lab, half_done, tmp_path):
    """Ctrl-C reaches every process of a terminal; a signal may also reach pyinfra alone."""
    agent, controller = shared
    directory, is_under_way = half_done
    script = deploy(controller, tmp_path / "large", f"{directory}/", "-t", "--bwlimit=2m")
    process = lab.keep(
        subprocess.Popen(
            controller._words(agent.name, [script], {}),
            cwd=controller.directory,
            env=controller.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    )
    eventually(is_under_way, RUN_SECONDS, "a transfer")

    (os.killpg if reach == "terminal" else os.kill)(process.pid, signal.SIGINT)
    done = finish(process, 10)

    assert "Traceback" not in done.text, done.text
    eventually(lambda: not os.listdir(directory), what="the removal of the temporary file")


# --- by hand ---


def test_interrupted_rsync_by_hand_leaves_nothing_on_the_target(shared, lab, half_done, tmp_path):
    agent, controller = shared
    directory, is_under_way = half_done
    shell = f"{AGENT} rsh -p {agent.port}"
    process = lab.keep(
        subprocess.Popen(
            ["rsync", "--bwlimit=2m", "-e", shell, tmp_path / "large", f"127.0.0.1:{directory}/"],
            env=controller.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    )
    eventually(is_under_way, RUN_SECONDS, "a transfer")

    os.killpg(process.pid, signal.SIGINT)

    assert process.wait(10) != 0
    assert "Traceback" not in process.stderr.read()
    eventually(lambda: not os.listdir(directory), what="the removal of the temporary file")


def by_hand(controller, *words, shell=f"{AGENT} rsh", **options):
    return run("rsync", "-e", shell, *words, env=controller.environment, cwd=controller.directory, **options)


def test_rsync_by_hand_goes_both_ways(shared, tmp_path):
    agent, controller = shared
    source = make_tree(tmp_path / "source")
    there = by_hand(controller, "-aH", f"{source}/", f"[127.0.0.1:{agent.port}]:{tmp_path}/two words")
    assert (there.status, there.text) == (0, "")
    back = by_hand(
        controller, "-aH", f"127.0.0.1:{tmp_path}/two words/", tmp_path / "back", shell=f"{AGENT} rsh -p {agent.port}"
    )
    assert (back.status, back.text) == (0, "")
    assert listing(tmp_path / "back") == listing(tmp_path / "two words") == listing(source)


def test_rsync_by_hand_reaches_an_ipv6_address(lab, tmp_path):
    controller = lab.controller()
    agent = lab.agent(controller, listen="[::1]:0")
    (tmp_path / "file").write_text("content")
    shell = f"{AGENT} rsh -p {agent.port}"
    assert by_hand(controller, tmp_path / "file", f"[::1]:{tmp_path}/copy", shell=shell).text == ""
    assert (tmp_path / "copy").read_text() == "content"


def test_rsync_by_hand_as_a_user_that_the_agent_is_not_fails_and_says_what_to_do(shared, tmp_path):
    agent, controller = shared
    name = pwd.getpwuid(os.geteuid()).pw_name
    (tmp_path / "file").touch()
    mine = by_hand(controller, tmp_path / "file", f"{name}@[127.0.0.1:{agent.port}]:{tmp_path}/mine")
    assert (mine.status, mine.text) == (0, "")
    theirs = by_hand(controller, tmp_path / "file", f"{OTHER}x@[127.0.0.1:{agent.port}]:{tmp_path}/theirs")
    assert theirs.status != 0
    assert f"runs as {name}, not as {OTHER}x: leave {OTHER}x@ out" in theirs.stderr
    assert not (tmp_path / "theirs").exists()


def test_rsync_by_hand_from_a_controller_that_is_not_let_in_says_how_to_let_it_in(shared, lab, tmp_path):
    agent, _ = shared
    done = by_hand(lab.controller("mallory"), "/etc/hostname", f"[127.0.0.1:{agent.port}]:{tmp_path}/copy")
    assert done.status != 0
    assert "pyinfra-agent authorize 'pyinfra-agent-key " in done.stderr


def test_remote_shell_passes_streams_and_status(shared, tmp_path):
    agent, controller = shared
    (tmp_path / "in").write_text("in\n")
    with (tmp_path / "in").open() as stdin:
        command = "cat; echo err >&2; exit 7"
        done = run(AGENT, "rsh", f"127.0.0.1:{agent.port}", command, stdin=stdin, env=controller.environment)
    assert (done.status, done.stdout, done.stderr) == (7, "in\n", "err\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_remote_shell_that_is_told_to_end_ends_its_command(number, shared, lab, tmp_path):
    """SIGUSR1 is what rsync sends to its remote shell when it fails."""
    agent, controller = shared
    pid = tmp_path / "pid"
    process = lab.keep(
        subprocess.Popen(
            [AGENT, "rsh", f"127.0.0.1:{agent.port}", f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600"],
            env=controller.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    eventually(pid.exists, what="the command's start")
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert time.monotonic() - started < 5
    assert process.stderr.read() == ""
    eventually(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists(), what="the command's end")


def test_remote_shell_of_what_is_no_agent_says_so(shared):
    _, controller = shared
    for words, expected in (
        (["known", "true"], "pyinfra-agent rsh: 'known' does not name one agent: write HOST or HOST:PORT\n"),
        (["web1"], "pyinfra-agent rsh: there is no COMMAND to run (see pyinfra-agent rsh --help)\n"),
    ):
        done = run(AGENT, "rsh", *words, env=controller.environment)
        assert done.status != 0
        assert done.stderr == expected
