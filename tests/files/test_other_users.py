"""Files of other users: the bytes go through a process of that user's, and nobody else sees them on the way."""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
import stat
import statistics
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import gevent
import pytest

from pyinfra_agent_connector._errors import AgentError, Refused
from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector.client import AgentClient
from tests.files.helpers import MIB, DelayingProxy, names_made_in, needs_tool
from tests.files.users import GROUP, OTHER, OTHERS_PASSWORD, PASSWORD, SOMEBODY, machine

CONTENT = random.Random(3).randbytes(3 * MIB)
NAMES = ["plain", "two\nlines", 'it\'s "$(quoted)"', "-rf", os.fsdecode(b"\xff\xfe"), "n" * 255]

# How pyinfra's arguments lead to another user, and to whom.
BY_SUDO = {"_sudo": True, "_sudo_user": "other"}
WAYS = {
    "sudo": (BY_SUDO, OTHER),
    "sudo with a password": ({"_sudo": True, "_sudo_password": PASSWORD}, 0),
    "sudo with a login": ({**BY_SUDO, "_use_sudo_login": True}, OTHER),
    "su with a password": ({"_su_user": "other", "_su_password": OTHERS_PASSWORD}, OTHER),
    "su with a login": ({"_su_user": "other", "_su_password": OTHERS_PASSWORD, "_use_su_login": True}, OTHER),
    "su from sudo": ({"_sudo": True, "_sudo_password": PASSWORD, "_su_user": "other"}, OTHER),
    "both with passwords": (
        {"_sudo": True, "_sudo_password": PASSWORD, "_su_user": "other", "_su_password": OTHERS_PASSWORD},
        OTHER,
    ),
    "doas": ({"_doas": True, "_doas_user": "other"}, OTHER),
    "dzdo": ({"_dzdo": True, "_dzdo_user": "other"}, OTHER),
    "a shell that reads its profile": ({**BY_SUDO, "_shell_executable": "bash -l"}, OTHER),
}
TO_OTHER = {name: arguments for name, (arguments, user) in WAYS.items() if user == OTHER}


@pytest.fixture(scope="module")
def place():
    """A directory that every user can reach."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make other users")
    for name in ("sudo", "su", "doas", "unshare", "nsenter"):
        needs_tool(name)
    directory = Path(tempfile.mkdtemp(prefix="pyinfra-agent-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def somebody(place):
    """A machine whose agent runs as an ordinary user."""
    (place / "somebody").mkdir()
    with machine(place / "somebody") as it:
        yield it


@pytest.fixture(scope="module")
def root(place):
    """A machine whose agent runs as root."""
    (place / "root").mkdir()
    with machine(place / "root", user=0) as it:
        yield it


@pytest.fixture
def theirs(somebody, request):
    """A directory of the other user's, which nobody else may enter."""
    path = somebody.directory(f"theirs-{abs(hash(request.node.name))}", OTHER)
    os.chmod(somebody.outside(path), 0o700)
    return path


def put(machine, content, path, arguments):
    return machine.host.put_file(io.BytesIO(content), path, **arguments)


def got(machine, path, arguments):
    sink = io.BytesIO()
    machine.host.get_file(path, sink, **arguments)
    return sink.getvalue()


@pytest.mark.parametrize("way", WAYS)
def test_file_travels_both_ways_as_another_user(way, somebody, theirs):
    """Where the agent's own user can neither read nor write; binary, empty, and over an old file that is longer."""
    arguments, user = WAYS[way]
    path = f"{theirs}/file"
    for content in (CONTENT, b"short", b""):
        put(somebody, content, path, arguments)
        outside = Path(somebody.outside(path))
        assert outside.read_bytes() == content
        assert outside.stat().st_uid == user
        outside.chmod(0o600)
        assert got(somebody, path, arguments) == content
    assert os.listdir(somebody.outside(theirs)) == ["file"]


@pytest.mark.parametrize("arguments", [BY_SUDO, {"_su_user": "other"}], ids=["sudo", "su"])
def test_agent_of_root_needs_no_password(arguments, root):
    path = root.directory(f"by-{next(iter(arguments))}", OTHER) + "/file"
    put(root, CONTENT, path, arguments)
    assert os.stat(root.outside(path)).st_uid == OTHER
    assert got(root, path, arguments) == CONTENT


@pytest.mark.parametrize("way", ["sudo", "su with a password", "doas"])
@pytest.mark.parametrize("name", NAMES)
def test_file_of_any_name_travels_as_another_user(name, way, somebody, theirs):
    """Each shell on the way sees the name as one word."""
    put(somebody, b"content", f"{theirs}/{name}", WAYS[way][0])
    assert got(somebody, f"{theirs}/{name}", WAYS[way][0]) == b"content"
    assert os.listdir(os.fsencode(somebody.outside(theirs))) == [os.fsencode(name)]


def test_agents_own_user_is_no_other(somebody):
    """`_sudo_user` that names whom the agent is anyway takes the atomic way, without sudo."""
    path = somebody.directory("mine", SOMEBODY) + "/file"
    put(somebody, b"old", path, {})
    before = os.stat(somebody.outside(path)).st_ino
    put(somebody, b"new", path, {"_sudo": True, "_sudo_user": "somebody"})
    after = os.stat(somebody.outside(path))
    assert (after.st_uid, after.st_ino != before) == (SOMEBODY, True)


def test_password_that_pyinfra_asked_for_serves_transfers_too(somebody):
    """What its user typed at the first command that wanted it is kept and used."""
    path = somebody.directory("prompted", 0) + "/file"
    somebody.host.connector_data["prompted_sudo_password"] = PASSWORD
    try:
        put(somebody, b"content", path, {"_sudo": True})
        assert got(somebody, path, {"_sudo": True}) == b"content"
    finally:
        del somebody.host.connector_data["prompted_sudo_password"]


# The reference is cp


def prepare_directory(outside, target):
    if target == "an old file":
        (outside / "file").write_bytes(b"old and longer than the new content")
        (outside / "file").chmod(0o640)
    elif target == "a program with set-user-ID":
        (outside / "file").write_bytes(b"old")
        (outside / "file").chmod(0o4755)
    elif target == "a hard link":
        (outside / "file").write_bytes(b"old")
        os.link(outside / "file", outside / "also")
    elif target == "a link":
        (outside / "end").write_bytes(b"old")
        (outside / "file").symlink_to("end")
    elif target == "a directory's group":
        os.chown(outside, OTHER, 0)
        outside.chmod(0o2755)
    for path in outside.iterdir():
        os.lchown(path, OTHER, GROUP)
        if not path.is_symlink() and target.startswith("a program"):
            path.chmod(0o4755)


TARGETS = ["nothing", "an old file", "a program with set-user-ID", "a hard link", "a link", "a directory's group"]


def found(outside):
    return {
        path.name: (
            path.stat().st_mode,
            path.stat().st_uid,
            path.stat().st_gid,
            path.stat().st_nlink,
            path.read_bytes(),
        )
        for path in outside.iterdir()
    }


@pytest.mark.parametrize(
    ("umask", "ways"),
    [
        (0o022, ("sudo", "su with a password", "doas", "dzdo", "su from sudo")),
        (0o077, ("sudo",)),
        (0o002, ("sudo", "su with a password")),
    ],
    ids=["022", "077", "002"],
)
def test_result_is_what_cp_of_that_user_leaves(umask, ways, place):
    """Owner, group, mode and links, of a source that gives everybody everything; by each way and for each target."""
    (place / oct(umask)).mkdir()
    with machine(place / oct(umask), umask=umask) as it:
        source = Path(it.outside("/tmp/source"))
        source.write_bytes(b"new content")
        source.chmod(0o666)
        for way in ways:
            for number, target in enumerate(TARGETS):
                outcomes = []
                for program in ("put", "cp"):
                    path = it.directory(f"{way}-{number}-{program}".replace(" ", "-"), OTHER)
                    outside = Path(it.outside(path))
                    prepare_directory(outside, target)
                    if program == "put":
                        put(it, source.read_bytes(), f"{path}/file", TO_OTHER[way])
                    else:
                        done, output = it.host.run_shell_command(f"cp /tmp/source {path}/file", **TO_OTHER[way])
                        assert done, output.output
                    outcomes.append(found(outside))
                assert outcomes[0] == outcomes[1], f"{way}: {target}"


# Nobody else sees it


@pytest.mark.parametrize("way", WAYS)
def test_no_copy_appears_in_a_temporary_directory(way, somebody, theirs):
    """At no moment, however short: pyinfra's own askpass script is the only name that is ever made there."""
    arguments, _ = WAYS[way]
    with names_made_in(somebody.temporary) as names:
        put(somebody, CONTENT, f"{theirs}/file", arguments)
        assert got(somebody, f"{theirs}/file", arguments) == CONTENT
    assert all("askpass" in name for name in names), names


def test_what_has_arrived_is_in_a_nameless_private_file(somebody, theirs):
    """While an upload is under way, all that the agent holds of it is a file without a name, for its own eyes only."""
    seen = []

    def chunks():
        yield CONTENT
        deadline = time.monotonic() + 5
        while not seen and time.monotonic() < deadline:
            for fd in Path(f"/proc/{somebody.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    if stat.S_ISREG((state := fd.stat()).st_mode) and state.st_size >= MIB:
                        seen.append((os.readlink(fd), state))
            gevent.sleep(0.01)

    client = client_of(somebody)
    try:
        client.put(chunks(), f"{theirs}/file", argv=["sudo", "-n", "-u", "other", "sh", "-c", f"cat > {theirs}/file"])
    finally:
        client.close()
    ((target, state),) = seen
    assert target.endswith("(deleted)")
    assert state.st_nlink == 0
    assert state.st_mode & 0o777 == 0o600


def test_password_is_in_no_argument(somebody, theirs):
    """`ps` shows arguments to everybody; with askpass the password travels in the environment of one process."""
    seen = set()
    over = threading.Event()

    def look():
        while not over.is_set():
            for process in Path("/proc").iterdir():
                if process.name.isdigit():
                    try:
                        seen.add((process / "cmdline").read_bytes())
                    except OSError:
                        continue

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for way in ("sudo with a password", "su with a password"):
            for _ in range(5):
                put(somebody, b"content", f"{theirs}/{way}", WAYS[way][0])
    finally:
        over.set()
        watcher.join()
    assert any(b"cat" in words for words in seen)
    assert not any(PASSWORD.encode() in words or OTHERS_PASSWORD.encode() in words for words in seen)


# One round trip


def client_of(machine, port=None):
    data = machine.host.data
    client = AgentClient(
        "127.0.0.1",
        port or int(machine.host.name.rpartition(":")[2]),
        identity=load_or_create(Path(data.agent_home)),
        check_key=lambda *_: None,
    )
    client.connect()
    return client


@pytest.mark.parametrize("how", ["put", "get"])
def test_file_of_another_user_takes_one_round_trip(how, somebody, theirs):
    """What a delay of the network adds to a transfer through sudo is that delay, there and back, once."""
    delay_seconds = 0.05
    path = f"{theirs}/file"
    writer = ["sudo", "-n", "-u", "other", "sh", "-c", f"cat > {path}"]
    reader = ["sudo", "-n", "-u", "other", "sh", "-c", f"printf nonce && cat < {path}"]

    def seconds(client):
        def once():
            began = time.monotonic()
            if how == "put":
                client.put([b"x" * 1024], path, argv=writer)
            else:
                client.get(path, lambda data: None, argv=reader, nonce=b"nonce")
            return time.monotonic() - began

        return statistics.median(once() for _ in range(5))

    near = client_of(somebody)
    with DelayingProxy(near.endpoint.port, delay_seconds) as proxy:
        far = client_of(somebody, proxy.port)
        try:
            near.put([b"x" * 1024], path, argv=writer)
            trips = (seconds(far) - seconds(near)) / (2 * delay_seconds)
        finally:
            far.close()
            near.close()
    assert 0.8 < trips < 1.5


# What goes wrong

FAILURES = {
    "a wrong password of sudo": ({"_sudo": True, "_sudo_password": "wrong"}, "1 incorrect password attempt"),
    "a wrong password for the asking": ({"_sudo": True}, "1 incorrect password attempt"),
    "an unknown user of sudo": ({"_sudo": True, "_sudo_user": "nosuch"}, "unknown user"),
    "a wrong password of su": ({"_su_user": "other", "_su_password": "wrong"}, "Authentication failure"),
    "no password for su": ({"_su_user": "other"}, "Authentication failure"),
    "an unknown user of su": ({"_su_user": "nosuch", "_su_password": "x"}, "user nosuch does not exist"),
    "doas to whom it does not lead": ({"_doas": True}, "Operation not permitted"),
    "an unknown user of doas": ({"_doas": True, "_doas_user": "nosuch"}, "unknown user"),
    "dzdo to whom it does not lead": ({"_dzdo": True}, "a password is required"),
    "an account without a shell": (
        {"_sudo": True, "_sudo_password": PASSWORD, "_su_user": "locked"},
        "This account is currently not available",
    ),
    "a place that is closed to them": (BY_SUDO, "Permission denied"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_way_that_fails_is_one_clear_line_and_changes_nothing(failure, somebody, request, monkeypatch):
    arguments, said = FAILURES[failure]
    monkeypatch.setattr("pyinfra.connectors.util.getpass", lambda prompt: "wrong")
    path = somebody.directory(f"roots-{abs(hash(request.node.name))}", 0) + "/file"
    outside = Path(somebody.outside(path))
    outside.write_bytes(b"old")
    outside.chmod(0o600)
    acts = {"write": lambda: put(somebody, CONTENT, path, arguments), "read": lambda: got(somebody, path, arguments)}
    for doing, act in acts.items():
        with pytest.raises(Refused, match=f"cannot {doing} {path} as the other user: ") as caught:
            act()
        assert said in str(caught.value)
        assert str(caught.value).isprintable()
        # What was asked for is kept for the rest of a run.
        somebody.host.connector_data.pop("prompted_sudo_password", None)
    assert outside.read_bytes() == b"old"


def test_wrapper_that_is_not_installed_is_named(somebody, theirs):
    client = client_of(somebody)
    try:
        with pytest.raises(Refused, match="cannot run nosuchdo: not found in PATH"):
            client.put([b"x"], f"{theirs}/file", argv=["nosuchdo", "-u", "other", "sh", "-c", "cat > file"])
    finally:
        client.close()


@pytest.mark.parametrize("kind", ["directory", "FIFO", "socket", "character device"])
@pytest.mark.parametrize("how", ["put", "get"])
def test_what_is_no_file_is_refused_as_another_user_too(how, kind, somebody, theirs):
    """Without waiting for it; but /dev/null can be written."""
    path = f"{theirs}/it"
    outside = somebody.outside(path)
    if kind == "directory":
        os.mkdir(outside)
    elif kind == "FIFO":
        os.mkfifo(outside)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(somebody.outside(theirs))  # a socket's path is short
            try:
                listener.bind("it")
            finally:
                os.chdir("/")
    else:
        path = "/dev/null"
    if path != "/dev/null":
        os.chown(outside, OTHER, GROUP)
    elif how == "put":
        put(somebody, b"content", path, BY_SUDO)
        return
    with pytest.raises(Refused, match="it is a directory, a FIFO, a socket or a device"):
        put(somebody, b"content", path, BY_SUDO) if how == "put" else got(somebody, path, BY_SUDO)


def test_upload_that_breaks_off_begins_no_writing(somebody, theirs):
    """A local file that cannot be read to its end cancels: the writer has not started, and the old file is whole."""
    path = f"{theirs}/file"
    put(somebody, b"old", path, BY_SUDO)

    class Broken(io.RawIOBase):
        left = 2

        def readable(self):
            return True

        def read(self, size=-1):
            self.left -= 1
            if self.left < 0:
                raise OSError(5, "Input/output error")
            return b"x" * MIB

    with pytest.raises(OSError, match="Input/output error"):
        somebody.host.put_file(Broken(), path, **BY_SUDO)
    assert Path(somebody.outside(path)).read_bytes() == b"old"
    assert got(somebody, path, BY_SUDO) == b"old"


def test_full_spool_is_named_as_what_is_full(root):
    """The data waits in /var/tmp until all of it is there: a message about the target's disk would mislead."""
    path = root.directory("spool", OTHER) + "/file"
    put(root, b"old", path, BY_SUDO)
    root.run("mount", "-t", "tmpfs", "-o", "size=1m", "none", "/var/tmp")
    try:
        with pytest.raises(AgentError, match=f"cannot keep in /var/tmp the new content of {path}: no space left"):
            put(root, CONTENT, path, BY_SUDO)
    finally:
        root.run("umount", "/var/tmp")
    assert Path(root.outside(path)).read_bytes() == b"old"
