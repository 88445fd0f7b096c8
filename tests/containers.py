"""Real machines for tests: systemd containers on a network of their own.

    with Lab() as lab:
        web1, web2 = lab.boot("web1", "web2")               # about half a second
        status, stdout, stderr = web1.run("hostname")
        lab.run("ping", "-c1", web1.address, check=True)    # from the controller's side of the network
        lab.popen("pyinfra", "-y", f"@agent/{web1.address}", "deploy.py")

A `Lab` is a network namespace for the controller (`CONTROLLER_ADDRESS`) with a bridge, to which each container is
plugged by `host0` with an address of its own. Nothing of it is seen from the machine's own network.

A `Container` is systemd-nspawn over an overlay: what it writes goes to a tmpfs. Beneath is this machine's own root
file system, so every program of this machine is there, or a tree that debootstrap made (`lower=`). It starts what
systemd itself brings and nothing that was enabled in /etc/systemd/system; cgroups inside are version 2. The virtual
environment that runs the tests, its base and the checkout are there, at the same paths, read-only, and every user
may reach them. /tmp and /run are fresh at each boot; all else stays when it reboots, which it really does.

Between `lab.add(name)` and `container.start()` files may be put below `container.root`. The tests of a directory
share a lab by a fixture in its conftest.py:

    @pytest.fixture(scope="session")
    def machines():
        containers_or_skip()
        with Lab() as lab:
            yield lab

Everything of a lab has the lab's id in its name, and its directory is locked as long as its process lives. So the end
of a lab removes all of it, and the beginning of the next one what labs left behind whose process was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["CONTROLLER_ADDRESS", "Container", "Lab", "Outcome", "containers_or_skip"]

CONTROLLER_ADDRESS: Final = "10.77.0.1"

_NETWORK: Final = ipaddress.ip_network("10.77.0.0/24")
_FIRST_CONTAINER: Final = 11
_PREFIX: Final = "pyinfra-lab-"
_HOME: Final = Path("/run/pyinfra-agent-lab")
_NSPAWN: Final = Path("/run/systemd/nspawn")
_CHECKOUT: Final = Path(__file__).resolve().parents[1]
_TOOLS: Final = (
    ("systemd-nspawn", "systemd-container"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
)
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
_RUN_SECONDS: Final = 30.0
_PATIENCE_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02
_POWER_OFF: Final = signal.SIGRTMIN + 4  # systemd(1), SIGNALS
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What is enabled on this machine must not start: these begin empty, and hide what the lower tree has there.
_EMPTY_DIRECTORIES: Final = ("etc/systemd/system", *(f"etc/rc{level}.d" for level in "2345S"))
_MASKED: Final = ("getty.target", "systemd-update-utmp-runlevel.service", "systemd-udevd.service")

_DIES_WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL", "--")
_REBOOT_STATUS: Final = 133  # of systemd-nspawn, which leaves it to whoever started it to boot again
_BOOT: Final = f'while :; do "$@"; [ $? -eq {_REBOOT_STATUS} ] || exit; done'
# With a clock that every boot begins anew: without, /proc/uptime is this machine's.
_FRESH_CLOCK: Final = """unshare --time --boottime "-$(cut -d. -f1 /proc/uptime)" --fork -- """
_BOOT_WITH_CLOCK: Final = _BOOT.replace('"$@"', _FRESH_CLOCK + '"$@"')
_JOIN: Final = 'for c in $1; do echo $$ > "$c/cgroup.procs" || exit; done; shift; exec "$@"'


class Outcome(NamedTuple):
    """How a command ended: its exit status (negative: the signal that killed it), and what it wrote."""

    status: int
    stdout: str
    stderr: str


def containers_or_skip() -> None:
    """Skip the test, with the reason, where containers cannot be started."""
    if os.geteuid() != 0:
        pytest.skip("containers need root")
    for tool, package in _TOOLS:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (package {package})")


class Lab:
    """A network, its controller's side, and the containers on it; a context manager.

    Attributes:
        id: a part of the name of everything that belongs to this lab.
        namespace: the controller's network namespace, by its name for ip(8).
    """

    def __init__(self) -> None:
        self.id = secrets.token_hex(3)
        self.namespace = f"{_PREFIX}{self.id}"
        self.containers: list[Container] = []
        self._directory = _HOME / self.id
        self._lock: int | None = None

    def __enter__(self) -> Lab:
        with _all_labs():
            _remove_dead_labs()
            self._directory.mkdir()
            self._lock = os.open(self._directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the containers and what was started in the controller's namespace, and remove every trace."""
        if self._lock is None:
            return
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self._lock)
            self._lock = None
            _remove(self.id)
        for container in self.containers:
            container._reap()

    def _set_up(self) -> None:
        storage = self._directory / "fs"
        storage.mkdir()
        _command("mount", "-t", "tmpfs", "-o", "size=4g,mode=755", "pyinfra-agent-lab", storage)
        for hierarchy in _hierarchies():
            (hierarchy / self.namespace / "controller").mkdir(parents=True)
        ip = ("ip", "-n", self.namespace)
        _command("ip", "netns", "add", self.namespace)
        _command(*ip, "link", "set", "lo", "up")
        # Without snooping the bridge passes multicast on to everybody, as a plain switch does.
        _command(*ip, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        _command(*ip, "address", "add", f"{CONTROLLER_ADDRESS}/{_NETWORK.prefixlen}", "dev", "br0")
        _command(*ip, "link", "set", "br0", "up")
        _command(*ip, "route", "add", "224.0.0.0/4", "dev", "br0")

    # --- containers ---

    def add(
        self,
        name: str,
        *,
        lower: Path = Path("/"),
        binds: Sequence[Path] = (),
        options: Sequence[str] = (),
        own_clock: bool = False,
    ) -> Container:
        """Prepare a container, plugged to the network; it does not run yet.

        Args:
            name: its host name; at most 12 of a-z, 0-9 and -.
            lower: the tree that its files come from; nothing is written there.
            binds: more paths of this machine that it sees, read-only, at the same place.
            options: more for systemd-nspawn.
            own_clock: its uptime is its own, as a machine's is, and begins at each boot.
        """
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,11}", name):
            raise ValueError(f"{name!r} is no name for a container: 1 to 12 of a-z, 0-9 and -, a letter first")
        if any(container.name == name for container in self.containers):
            raise ValueError(f"this lab has a container {name} already")
        address = str(_NETWORK[_FIRST_CONTAINER + len(self.containers)])
        container = Container(self, name, address, lower, [*_python_paths(), *binds], options, own_clock)
        self.containers.append(container)
        return container

    def boot(self, *names: str, **options: Any) -> list[Container]:
        """Add containers, start them at once and wait until all run; `options` as for `add`."""
        containers = [self.add(name, **options) for name in names]
        for container in containers:
            container.start()
        for container in containers:
            container.wait_running()
        return containers

    # --- the controller's side ---

    def in_lab(self, command: Sequence[object]) -> list[str]:
        """Return `command` as it runs in the controller's network, with this machine's files; it ends with the lab."""
        groups = [hierarchy / self.namespace / "controller" for hierarchy in _hierarchies()]
        return _joining(groups, ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *command])

    def run(self, *command: object, **options: Any) -> Outcome:
        """Run a command in the controller's network to its end; `options` as for `Container.run`."""
        return _finish(self.in_lab(command), **options)

    def popen(self, *command: object, **options: Any) -> subprocess.Popen[Any]:
        """Start a command in the controller's network."""
        return subprocess.Popen(self.in_lab(command), **options)


class Container:
    """A machine with a real systemd. `Lab.add` and `Lab.boot` make it.

    Attributes:
        name: its host name.
        address: its IPv4 address on the lab's network.
        link: the controller's end of its cable: `lab.run("ip", "link", "set", container.link, "down")` cuts it.
        root: its files, as a directory of this machine: without /tmp, /run, /dev and /proc, which are its own.
        console: the file that what it wrote to the console is in.
    """

    def __init__(
        self,
        lab: Lab,
        name: str,
        address: str,
        lower: Path,
        binds: Sequence[Path],
        options: Sequence[str],
        own_clock: bool,
    ) -> None:
        self.name = name
        self.address = address
        self.link = f"v-{name}"
        directory = lab._directory / "fs" / name
        self.root = directory / "root"
        self.console = directory / "console"
        self._full_name = f"{lab.namespace}-{name}"
        self._groups = [hierarchy / lab.namespace / name for hierarchy in _hierarchies()]
        self._own_clock = own_clock
        self._process: subprocess.Popen[bytes] | None = None
        self._plug(lab.namespace)
        self._make_root(directory, lower, binds)
        self._words = [
            *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}"),
            *(f"--machine={self._full_name}", f"--hostname={name}"),
            # Registered nowhere: there may be no systemd here to ask, and its unit is the cgroup that we made.
            *("--register=no", "--keep-unit", "--link-journal=no", "--console=pipe"),
            *(f"--network-namespace-path=/run/netns/{self._full_name}", "--resolv-conf=off", "--timezone=off"),
            *(f"--bind-ro={path}" for path in binds),
            *options,
            "systemd.unit=multi-user.target",
        ]

    def __repr__(self) -> str:
        return f"<Container {self.name} {self.address}>"

    # --- power ---

    def start(self) -> None:
        """Switch it on, without waiting."""
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError(f"{self.name} runs already")
        nspawn = ["sh", "-c", _BOOT_WITH_CLOCK if self._own_clock else _BOOT, "sh", *self._words]
        with self.console.open("ab") as console:
            self._process = subprocess.Popen(
                _joining(self._groups, nspawn),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={"PATH": _PATH, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
            )

    def wait_running(self, *, after: int | None = None, seconds: float = _START_SECONDS) -> None:
        """Wait until its systemd has started everything; `after` is the `leader` of a boot that is not meant."""
        deadline = time.monotonic() + seconds
        state = "no answer"
        while time.monotonic() < deadline:
            assert self._process is not None, f"{self.name} was not started"
            assert self._process.poll() is None, f"{self.name} ended:\n{self.console_text}"
            leader = self.leader
            if leader is not None and leader != after:
                # While it boots or goes down, it may be gone at any moment.
                state = self._enter(leader, ["systemctl", "is-system-running"]).stdout.strip() or state
                if state in ("running", "degraded"):
                    return
            time.sleep(_POLL_SECONDS)
        raise AssertionError(f"{self.name} was not up within {seconds:g} s ({state}):\n{self.console_text}")

    def reboot(self) -> None:
        """Reboot as `systemctl reboot` does, and wait until it runs again."""
        before = self.leader
        self.run("systemctl", "reboot", check=True)
        self.wait_running(after=before)

    def power_off(self) -> None:
        """Shut down in good order, and wait for it."""
        assert self._process is not None, f"{self.name} was not started"
        leader = self.leader
        if leader is not None:
            os.kill(leader, _POWER_OFF)
        self._process.wait(_STOP_SECONDS)

    def kill(self) -> None:
        """Pull the power plug: every process is gone at once. It may be started again."""
        assert self._process is not None, f"{self.name} was not started"
        _kill_groups(self._groups)
        self._process.wait(_STOP_SECONDS)

    @property
    def leader(self) -> int | None:
        """The process id, on this machine, of its init; None while there is none."""
        if self._process is None:
            return None
        for pid in _descendants(self._process.pid):
            with contextlib.suppress(OSError):
                ids = re.search(r"^NSpid:\s+(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
                if ids is not None and ids[1].split()[1:] == ["1"]:
                    return pid
        return None

    @property
    def console_text(self) -> str:
        """What it wrote to its console, in all its boots."""
        return self.console.read_text(errors="replace")

    # --- use ---

    def in_container(self, command: Sequence[object]) -> list[str]:
        """Return `command` as root runs it in the container: in a cgroup beside systemd's, and no login."""
        leader = self.leader
        if leader is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._entering(leader, command)

    def run(self, *command: object, **options: Any) -> Outcome:
        """Run a command in the container, as root, to its end.

        Args:
            command: its words.
            options: `input` (text), `env` (in place of PATH alone), `seconds` (30; it is killed then, and the test
                fails), `check` (fail unless the exit status is 0).
        """
        return _finish(self.in_container(command), **({"env": {"PATH": _PATH}} | options))

    def popen(self, *command: object, **options: Any) -> subprocess.Popen[Any]:
        """Start a command in the container."""
        return _Entered(self.in_container(command), **({"env": {"PATH": _PATH}} | options))

    def path(self, inside: str | Path) -> Path:
        """Return where this machine sees a path of the running container, its /tmp and /run included."""
        return Path(f"/proc/{self.leader}/root", str(inside).lstrip("/"))

    def copy_in(self, source: Path, inside: str | Path) -> None:
        """Copy a file or a directory into the running container, owned by root."""
        _copy(source, self.path(inside))

    def copy_out(self, inside: str | Path, target: Path) -> None:
        """Copy a file or a directory out of the running container."""
        _copy(self.path(inside), target)

    # --- making it ---

    def _plug(self, namespace: str) -> None:
        own = ("ip", "-n", self._full_name)
        controllers = ("ip", "-n", namespace)
        _command("ip", "netns", "add", self._full_name)
        _command(
            *controllers, *("link", "add", self.link, "type", "veth"), *("peer", "name", "host0", "netns"), own[-1]
        )
        _command(*controllers, "link", "set", self.link, "master", "br0", "up")
        _command(*own, "address", "add", f"{self.address}/{_NETWORK.prefixlen}", "dev", "host0")
        _command(*own, "link", "set", "lo", "up")
        _command(*own, "link", "set", "host0", "up")
        _command(*own, "route", "add", "default", "via", CONTROLLER_ADDRESS)

    def _make_root(self, directory: Path, lower: Path, binds: Sequence[Path]) -> None:
        upper, work = directory / "upper", directory / "work"
        for made in (upper, work, self.root, *self._groups):
            made.mkdir(parents=True)
        for name in _EMPTY_DIRECTORIES:
            (upper / name).mkdir(parents=True)
            os.setxattr(upper / name, "trusted.overlay.opaque", b"y")
        for unit in _MASKED:
            (upper / "etc/systemd/system" / unit).symlink_to("/dev/null")
        # The default resolv.conf would ask servers that are not there, which takes seconds.
        files = {
            "hostname": self.name,
            "machine-id": secrets.token_hex(16),
            "hosts": f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n::1 localhost ip6-localhost",
            "resolv.conf": "",
            "fstab": "",
        }
        for name, text in files.items():
            (upper / "etc" / name).write_text(text + "\n")
        layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
        _command("mount", "-t", "overlay", "pyinfra-agent-lab", "-o", layers, self.root)
        for path in binds:
            for parent in path.parents:
                inside = self.root / str(parent).lstrip("/")
                if inside.is_dir():
                    inside.chmod(inside.stat().st_mode & 0o7777 | 0o011)

    def _entering(self, leader: int, command: Sequence[object]) -> list[str]:
        # A group within the container's, or systemd inside could not move the command to another (to a session's).
        groups = [group / "payload" / "lab" for group in self._groups if (group / "payload").is_dir()]
        for group in groups:
            group.mkdir(exist_ok=True)
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", *["--time"] * self._own_clock]
        return _joining(groups, ["nsenter", f"--target={leader}", *namespaces, "--", *_DIES_WITH_PARENT, *command])

    def _enter(self, leader: int, command: Sequence[str]) -> Outcome:
        return _finish(self._entering(leader, command), env={"PATH": _PATH})

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(_STOP_SECONDS)


# --- running things ---


class _Entered(subprocess.Popen[Any]):
    """An nsenter that waits for a command in another process namespace, and ends as the command did.

    Signals are for the command. Were nsenter killed instead, the command would be left to this machine's init, and one
    that does not reap strangers would keep the container from rebooting.
    """

    def send_signal(self, number: int) -> None:
        for pid in _descendants(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            return
        super().send_signal(number)


def _finish(
    words: Sequence[str],
    *,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    seconds: float = _RUN_SECONDS,
    check: bool = False,
) -> Outcome:
    done = subprocess.run(
        words,
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env=env,
        cwd=cwd,
        timeout=seconds,
        check=False,
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert not check or outcome.status == 0, f"{words} failed: {outcome}"
    return outcome


def _command(*words: object) -> None:
    """Run a command of this machine that must succeed."""
    _finish([str(word) for word in words], check=True)


def _joining(groups: Sequence[Path], command: Sequence[object]) -> list[str]:
    """Return `command` as it runs in the given cgroups; no two of them of one hierarchy."""
    return ["sh", "-c", _JOIN, "sh", " ".join(map(str, groups)), *map(str, command)]


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def _python_paths() -> list[Path]:
    """Return what a container must see to run this Python with this checkout, outermost directories only."""
    wanted = {Path(sys.prefix).resolve(), Path(sys.prefix), Path(sys.base_prefix).resolve(), _CHECKOUT}
    # The system's own Python is in the container's own /usr, where the interpreter of a virtual environment finds it.
    wanted.discard(Path("/usr"))
    return sorted(path for path in wanted if not any(parent in wanted for parent in path.parents))


# --- what the kernel knows ---


def _mounts() -> Iterator[tuple[Path, str, str]]:
    """Yield mount point, type and options of the file system, in the order in which they were mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), left.split()[4])
        yield Path(place), right.split()[0], right.split()[-1]


def _hierarchies() -> list[Path]:
    """Return the roots of the cgroup hierarchies that systemd-nspawn uses: version 2, and version 1's named systemd."""
    return [
        place
        for place, kind, options in _mounts()
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(","))
    ]


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from _descendants(int(child))


def _kill_groups(groups: Sequence[Path]) -> None:
    """Kill every process in these cgroups and below, and wait until they are gone."""
    deadline = time.monotonic() + _STOP_SECONDS
    while pids := {pid for group in groups for pid in _members(group)}:
        assert time.monotonic() < deadline, f"processes {sorted(pids)} do not end"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _members(group: Path) -> Iterator[int]:
    for directory, _, _ in os.walk(group):
        with contextlib.suppress(OSError):  # the group went away meanwhile
            yield from map(int, Path(directory, "cgroup.procs").read_text().split())


# --- removing ---


@contextlib.contextmanager
def _all_labs() -> Iterator[None]:
    """Hold the lock that says which labs there are."""
    _HOME.mkdir(mode=0o755, exist_ok=True)
    lock = os.open(_HOME / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_dead_labs() -> None:
    for directory in _HOME.iterdir():
        if not directory.is_dir():
            continue
        lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(directory.name)
        except BlockingIOError:
            pass  # its process lives
        finally:
            os.close(lock)


def _remove(lab: str) -> None:
    """Remove everything that carries the id of a lab."""
    name, directory = f"{_PREFIX}{lab}", _HOME / lab
    groups = [hierarchy / name for hierarchy in _hierarchies() if (hierarchy / name).is_dir()]
    _kill_groups(groups)
    for group in groups:
        for path, _, _ in os.walk(group, topdown=False):
            _patiently(os.rmdir, path)
    # What systemd-nspawn leaves: a lock on each root, by the root's number, and a directory to mount things by.
    for root in directory.glob("fs/*/root"):
        (_NSPAWN / f"locks/inode-{root.stat().st_dev}:{root.stat().st_ino}").unlink(missing_ok=True)
    for left in _NSPAWN.glob(f"*/{name}-*"):
        _unmount(left)
        shutil.rmtree(left)
    _unmount(directory)
    for namespace in Path("/run/netns").glob(f"{name}*"):
        _command("ip", "netns", "delete", namespace.name)
    shutil.rmtree(directory)


def _unmount(directory: Path) -> None:
    """Unmount what is mounted there and below."""
    for place, _, _ in reversed(list(_mounts())):
        if place == directory or directory in place.parents:
            _patiently(_command, "umount", place)


def _patiently(act: Callable[..., object], *arguments: object) -> None:
    """Do what may fail for a moment: what has just died may hold it for a little longer."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            act(*arguments)
        except (OSError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return
