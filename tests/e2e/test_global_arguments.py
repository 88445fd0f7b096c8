"""pyinfra's global arguments mean the same through an agent as through `@local`, by the real command."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.e2e.helpers import run

DEPLOY = '''
from io import StringIO

from pyinfra import host
from pyinfra.operations import files, server

OUT = host.data.out


def shell(name, *scripts, **arguments):
    server.shell(name=name, commands=list(scripts), **arguments)


ENV = {"PLAIN": "1", "BLANKS": "a  b ", "QUOTES": "it's", "UMLAUT": "gr\\u00fc\\u00dfe", "EMPTY": ""}
shell("env", f'printf "<%s>" "$PLAIN" "$BLANKS" "$QUOTES" "$UMLAUT" "${{EMPTY-unset}}" > {OUT}/env', _env=ENV)
shell("chdir", f"pwd > {OUT}/chdir; cd ..; pwd >> {OUT}/chdir", f"pwd >> {OUT}/chdir", _chdir=f"{OUT}/inner")
shell("stdin text", f"cat > {OUT}/stdin-text", _stdin="one line")
shell("stdin lines", f"cat > {OUT}/stdin-lines", _stdin=["first", "second", "gr\\u00fc\\u00dfe"])
shell("stdin none", f"wc -c > {OUT}/stdin-none")
shell("in time", f"echo ended > {OUT}/in-time", _timeout=20)
shell("pipe", f"test -t 1 && echo terminal > {OUT}/pipe || echo pipe > {OUT}/pipe")
shell("exit code", "exit 3", _success_exit_codes=[0, 3])
shell("exit code not listed", "exit 4", _success_exit_codes=[0, 3], _ignore_errors=True)
shell("zero not listed", "exit 0", _success_exit_codes=[3], _ignore_errors=True)
shell("fails", f"echo before > {OUT}/fails; false; echo after >> {OUT}/fails; exit 1", _ignore_errors=True)
shell("shell", f'echo "${{BASH_VERSION:+bash}}" $0 > {OUT}/shell', _shell_executable="bash")
shell("long", ": " + "x" * 100_000 + f"; echo long > {OUT}/long")
shell("syntax", f"""printf '%s\\n' "a 'b' \\\\"c\\\\" \\\\$d" * > {OUT}/syntax # a comment""", _chdir=f"{OUT}/inner")
shell("all", f'cat > {OUT}/all; echo "$PLAIN $0" >> {OUT}/all; pwd >> {OUT}/all; exit 7',
      _env=ENV, _chdir=f"{OUT}/inner", _stdin="in", _timeout=20, _success_exit_codes=[7], _shell_executable="bash")
files.put(name="put", src=StringIO("uploaded\\n"), dest=f"{OUT}/put", mode="640")
files.get(name="get", src=f"{OUT}/put", dest=f"{OUT}/got")
'''

ALONE = """
shell("terminal", f"test -t 0 && test -t 1 && echo terminal > {OUT}/terminal; stty size >> {OUT}/terminal",
      _get_pty=True)
shell("too late", f"echo started > {OUT}/late; sleep 2; echo late >> {OUT}/late", _timeout=1, _ignore_errors=True)
shell("stdin unread", f"true > {OUT}/stdin-unread", _stdin="x" * 500_000)
shell("home", f"pwd > {OUT}/home")
"""

AS_OTHERS = """
OTHER = "nobody"
who = "id -un; id -Gn"
shell("sudo", f"({who}) > {OUT}/sudo", _sudo=True)
shell("sudo user", f"({who}) > {OUT}/others/sudo-user", _sudo=True, _sudo_user=OTHER)
shell("su user", f"({who}) > {OUT}/others/su-user", _su_user=OTHER, _su_shell="/bin/sh")
shell("sudo user, all", f'cat > {OUT}/others/all; echo "$PLAIN" >> {OUT}/others/all; pwd >> {OUT}/others/all; exit 5',
      _sudo=True, _sudo_user=OTHER, _env=ENV, _chdir=f"{OUT}/inner", _stdin=["a", "b"], _success_exit_codes=[5])
shell("sudo user may not", f"cat {OUT}/secret > {OUT}/others/no", _sudo=True, _sudo_user=OTHER, _ignore_errors=True)
shell("su user in a shell", f'echo "${{BASH_VERSION:+bash}}" > {OUT}/others/su-shell',
      _su_user=OTHER, _su_shell="/bin/bash", _shell_executable="bash")
"""

# pyinfra's own @local copies from a file that the other user may not read.
FILES_OF_OTHERS = """
OTHER = "nobody"
files.put(name="put as another", src=StringIO("theirs\\n"), dest=f"{OUT}/others/put", _sudo=True, _sudo_user=OTHER)
files.put(name="put by su", src=StringIO("theirs\\n"), dest=f"{OUT}/others/su-put", _su_user=OTHER, _su_shell="/bin/sh")
files.get(name="get as another", src=f"{OUT}/others/put", dest=f"{OUT}/got-theirs", _sudo=True, _sudo_user=OTHER)
files.put(name="put with sudo", src=StringIO("root's\\n"), dest=f"{OUT}/sudo-put", mode="600", _sudo=True)
"""


def becomes_nobody():
    """Return whether this user may become nobody by sudo and by su, without a password."""
    if os.geteuid() != 0 or not (shutil.which("sudo") and shutil.which("su")):
        return False
    return run("sudo", "-n", "-u", "nobody", "true").status == 0


AS_ROOT = pytest.mark.skipif(not becomes_nobody(), reason="becoming nobody without a password needs root, sudo and su")
PREAMBLE = DEPLOY[: DEPLOY.index("ENV =")]
WITH_ENV = DEPLOY[: DEPLOY.index('shell("env"')]


@pytest.fixture
def place():
    """A directory that other users can reach, which pytest's own are not."""
    place = Path(tempfile.mkdtemp(prefix="pyinfra-agent-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def outcome(controller, inventory, deploy, out):
    """Run *deploy*; return each operation's outcome, and each file below *out* with its owner and mode."""
    out.mkdir()
    (out / "inner").mkdir()
    (out / "inner" / "file").touch()
    (out / "others").mkdir()
    (out / "others").chmod(0o777)
    (out / "secret").touch(mode=0o600)
    script = controller.directory / "deploy.py"
    script.write_text(deploy)
    done = controller.pyinfra(inventory, "--json", script, out=out)
    assert "Traceback" not in done.text
    assert done.status == 0, done.text
    operations = {
        operation["name"]: next(word for word in ("success", "error", "no_change") if operation[word])
        for operation in json.loads(done.stdout)["results"]["operations"]
    }
    files = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            status = path.stat()
            content = path.read_text().replace(str(out), "OUT")
            files[str(path.relative_to(out))] = (content, status.st_uid, oct(status.st_mode))
    return operations, files


def test_global_arguments_mean_the_same_as_through_local(shared, place):
    agent, controller = shared

    there = outcome(controller, "@local", DEPLOY, place / "there")
    here = outcome(controller, agent.name, DEPLOY, place / "here")

    assert here == there
    operations, files = here
    assert {name for name, what in operations.items() if what == "error"} == {
        "exit code not listed",
        "zero not listed",
        "fails",
    }
    assert files["env"][0] == "<1><a  b ><it's><gr\u00fc\u00dfe><>"
    assert files["chdir"][0] == "OUT/inner\nOUT\nOUT/inner\n"
    assert files["stdin-lines"][0] == "first\nsecond\ngr\u00fc\u00dfe\n"
    assert files["stdin-none"][0].strip() == "0"
    assert files["pipe"][0] == "pipe\n"
    assert files["shell"][0] == "bash bash\n"
    assert files["long"][0] == "long\n"
    assert files["all"][0] == "in\n1 bash\nOUT/inner\n"
    assert files["got"][0] == files["put"][0] == "uploaded\n"


def test_arguments_that_local_takes_differently_do_what_they_say(shared, place):
    """A terminal is one, a command dies when its time is over or may leave its input, and commands start at home."""
    agent, controller = shared

    operations, files = outcome(controller, agent.name, PREAMBLE + ALONE, place / "here")

    assert operations == {
        "terminal": "success",
        "too late": "error",
        "stdin unread": "success",
        "home": "success",
    }
    assert files["terminal"][0].startswith("terminal\n")
    assert all(int(number) > 0 for number in files["terminal"][0].split()[1:])
    assert files["late"][0] == "started\n"
    assert files["home"][0] == f"{pwd.getpwuid(os.geteuid()).pw_dir}\n"


@AS_ROOT
def test_arguments_that_change_the_user_mean_the_same_as_through_local(shared, place):
    agent, controller = shared
    there = outcome(controller, "@local", WITH_ENV + AS_OTHERS, place / "there")
    here = outcome(controller, agent.name, WITH_ENV + AS_OTHERS, place / "here")

    assert here == there
    operations, files = here
    assert [name for name, what in operations.items() if what == "error"] == ["sudo user may not"]
    nobody = pwd.getpwnam("nobody").pw_uid
    for name in ("sudo-user", "su-user", "all", "su-shell"):
        assert files[f"others/{name}"][1] == nobody
    assert files["others/sudo-user"][0].startswith("nobody\n")
    assert files["others/su-user"][0].startswith("nobody\n")


@AS_ROOT
def test_files_of_other_users_are_written_and_read_as_those_users(shared, place):
    agent, controller = shared

    operations, files = outcome(controller, agent.name, WITH_ENV + FILES_OF_OTHERS, place / "here")

    assert set(operations.values()) == {"success"}
    nobody = pwd.getpwnam("nobody").pw_uid
    assert files["others/put"][:2] == files["others/su-put"][:2] == ("theirs\n", nobody)
    assert files["got-theirs"][0] == "theirs\n"
    assert files["sudo-put"] == ("root's\n", 0, "0o100600")
