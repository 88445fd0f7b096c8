"""`user=`: commands and files are that user's, and nothing of root is left in reach."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pyinfra_agent import _account
from pyinfra_agent_protocol import Exec, Get, Info, PtySize, Put, Stat
from tests.agent.helpers import sh
from tests.trust.conftest import ACCOUNT, TrustHouse


@pytest.fixture
async def controller(house, account):
    return await house.let_in(f"user={ACCOUNT}")


async def lines(controller, script, **fields):
    call = await controller.ask(sh(script, **fields))
    assert call.refusal is None, call.refusal
    assert call.result.exit == 0, (call.out, call.err)
    return call.out.decode().splitlines()


async def test_command_has_the_users_ids_groups_and_no_capability(controller, account):
    status = dict(line.split(":\t") for line in await lines(controller, "cat /proc/self/status") if ":\t" in line)
    assert status["Uid"].split() == [str(account.pw_uid)] * 4
    assert status["Gid"].split() == [str(account.pw_gid)] * 4
    assert set(map(int, status["Groups"].split())) == set(os.getgrouplist(ACCOUNT, account.pw_gid))
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "0"
    assert int(status["CapBnd"], 16) != 0, "sudo has to work inside"


async def test_command_has_the_users_environment_and_starts_at_home(controller, account):
    assert await lines(controller, 'echo "$HOME $USER $LOGNAME $SHELL"; pwd; umask >/dev/null; echo "$PATH"') == [
        f"{account.pw_dir} {ACCOUNT} {ACCOUNT} /bin/sh",
        account.pw_dir,
        _account.login_environment(account.pw_uid)[b"PATH"].decode(),
    ]


async def test_welcome_and_info_name_the_user(controller, account):
    assert controller.welcome.user == ACCOUNT
    assert (await controller.ask(Info())).result.info["uid"] == account.pw_uid


async def test_command_gets_its_variables_exactly_and_nobody_else_sees_them(controller):
    """In /proc every user reads the words of a command line."""
    value = bytes(range(1, 256))
    call = controller.start(
        sh(
            "cat /proc/self/environ; echo; read x; cat /proc/$$/cmdline",
            env={b"SECRET": value, b"_a1": b""},
            stdin=True,
        )
    )
    await call.wait_output(200)
    shown = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, check=True).stdout
    assert b"SECRET" not in shown
    await controller.send(call, b"\n")
    await call.wait()
    assert b"SECRET=" + value + b"\0" in call.out
    assert b"_a1=\0" in call.out


@pytest.mark.parametrize("fields", [{}, {"pty": PtySize()}])
async def test_variables_have_no_power_before_the_user_is_changed(controller, open_directory, account, fields):
    """A library that the loader takes for root's setpriv would make the controller root."""
    source, library, trace = (open_directory / name for name in ("evil.c", "evil.so", "trace"))
    source.write_text(
        "#include <stdio.h>\n#include <unistd.h>\n"
        "__attribute__((constructor)) static void run(void) {\n"
        f'  FILE *file = fopen("{trace}", "a"); if (file) {{ fprintf(file, "%d\\n", getuid()); fclose(file); }}\n}}\n'
    )
    made = subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("there is no C compiler (package gcc)")
    trace.touch()
    trace.chmod(0o666)
    variables = {b"LD_PRELOAD": bytes(library), b"PATH": b"/nonexistent:/usr/bin:/bin"}
    call = await controller.ask(sh("/bin/true", env=variables, **fields))
    assert call.result.exit == 0
    assert set(trace.read_text().split()) == {str(account.pw_uid)}
    call = await controller.ask(Put(bytes(open_directory / "f"), argv=(b"cat",), env=variables), b"x")
    assert set(trace.read_text().split()) == {str(account.pw_uid)}


async def test_variable_whose_name_no_shell_takes_is_refused(controller):
    call = await controller.ask(sh("true", env={b"A.B": b"1"}))
    assert call.refusal.code == "bad-request"


async def test_long_script_runs_as_the_user(controller, account):
    script = b"#" + b"x" * 200_000 + b"\nid -u; cat\n"
    request = Exec((b"sh", b"-c", b""), script_index=2, script_size=len(script), stdin=True, env={b"A": b"1"})
    call = await controller.ask(request, script + b"in")
    assert call.out == b"%d\nin" % account.pw_uid


async def test_directory_that_only_root_may_enter_is_closed_to_the_user(controller, tmp_path):
    closed = tmp_path / "closed"
    (closed / "open").mkdir(parents=True)
    closed.chmod(0o700)
    call = await controller.ask(sh("cat secret", cwd=bytes(closed / "open")))
    assert call.result.exit != 0
    assert b"Permission denied" in call.err


async def test_terminal_belongs_to_the_user(controller):
    assert await lines(controller, 'test -O "$(tty)" && echo x >"$(tty)" && echo y >/dev/tty', pty=PtySize()) == [
        "x",
        "y",
    ]


async def test_cancelled_command_of_the_user_ends(controller):
    call = controller.start(sh("echo on; exec sleep 60"))
    await call.wait_line()
    controller.cancel(call)
    assert (await call.wait()).reason == "cancelled"


async def test_files_that_only_root_may_touch_are_closed_to_the_user(controller, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("root's")
    for request in (Get(bytes(secret)), Stat(bytes(secret)), Get(b"/etc/shadow")):
        assert (await controller.ask(request)).refusal.code == "permission"
    for path in (secret, "/etc/pyinfra-agent-test", "/root/x"):
        call = await controller.ask(Put(os.fsencode(path)), b"mine")
        assert call.refusal.code == "permission", path
    assert secret.read_text() == "root's"


async def test_link_of_the_user_to_a_file_of_root_leads_nowhere(controller, account, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("root's")
    link = Path(account.pw_dir, "link")
    link.symlink_to(secret)
    try:
        assert (await controller.ask(Get(b"link"))).refusal.code == "permission"
        assert (await controller.ask(Put(b"link"), b"mine")).refusal.code == "permission"
    finally:
        link.unlink()
    assert secret.read_text() == "root's"


async def test_files_come_and_go_under_the_users_home(controller, account):
    content = os.urandom(3_000_000)
    call = await controller.ask(Put(b"there", mode=0o600), content)
    assert (call.result.size, call.result.created) == (len(content), True)
    there = Path(account.pw_dir, "there")
    assert (there.stat().st_uid, there.stat().st_mode & 0o777) == (account.pw_uid, 0o600)
    call = await controller.ask(Get(b"there"))
    assert call.out == content
    assert call.result.mode == 0o600
    found = (await controller.ask(Stat(b"there"))).result.stat
    assert (found["user"], found["size"]) == (ACCOUNT, len(content))
    assert (await controller.ask(Stat(b"nowhere"))).result.stat is None
    there.unlink()
    there.symlink_to("else\udcffwhere")
    assert (await controller.ask(Stat(b"there", follow=False))).result.stat["target"] == b"else\xffwhere"
    there.unlink()
    assert (await controller.ask(Get(b"nowhere"))).refusal.code == "not-found"


async def test_empty_file_comes_and_goes(controller, account):
    assert (await controller.ask(Put(b"empty"), b"")).result.size == 0
    call = await controller.ask(Get(b"empty"))
    assert (call.result.size, call.out) == (0, b"")
    Path(account.pw_dir, "empty").unlink()


async def test_user_that_is_not_there_is_named_in_the_refusal(house):
    controller = await house.let_in("user=nobody-of-that-name")
    call = await controller.ask(sh("true"))
    assert call.refusal.code == "denied"
    assert "nobody-of-that-name" in call.refusal.text


async def test_system_without_setpriv_refuses_and_says_what_to_install(controller, monkeypatch):
    _account._tools.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(_account, "_SYSTEM_PATH", "/nonexistent")
        call = await controller.ask(sh("true"))
        assert (call.refusal.code, "util-linux" in call.refusal.text) == ("denied", True)
    assert (await controller.ask(sh("true"))).result.exit == 0, "a failure is not remembered"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_line_with_the_agents_own_user_changes_nothing(nursery, tmp_path):
    house = TrustHouse(nursery, tmp_path)
    controller = await house.let_in("user=root")
    assert await lines(controller, "id -u; cat /proc/self/status | grep CapEff >/dev/null") == ["0"]
