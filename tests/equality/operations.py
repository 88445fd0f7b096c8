"""A deploy with every operation that can run on a container without a network. It states one final state.

Operations whose name begins with "always" may act at each run, by what pyinfra says of them or by how it looks; all
others must find nothing to do at the second one. What they find is made by `operations_setup.sh`. Nothing is uploaded
as another user: @local's own copy is not readable for that user.

Host data: `fetched`, a directory of the controller's for downloads; `port`, on which something listens; `victim`, a
process to kill; `python`, which makes the virtual environment.
"""

from __future__ import annotations

import io
from pathlib import Path

from pyinfra import host
from pyinfra.facts.files import File
from pyinfra.facts.server import Command
from pyinfra.operations import (
    apt,
    crontab,
    files,
    git,
    gpg,
    pip,
    python,
    runit,
    server,
    systemd,
    sysvinit,
)

HERE = Path(__file__).parent
MATERIAL = HERE / "material"
PLACE = "/srv/place"
REMOTE = "/srv/material"
KEYS = ["ssh-ed25519 AAAA one@example.net", 'from="192.0.2.0/24" ssh-rsa BBBB two@example.net']

# --- files ---
files.directory(name="files.directory", path=f"{PLACE}/made/deep", mode="750", user="daemon", group="daemon")
files.directory(name="files.directory recursive", path=f"{PLACE}/recursive", mode="755", user="keyed", recursive=True)
files.directory(name="files.directory absent", path=f"{PLACE}/gone-directory", present=False)
files.file(name="files.file", path=f"{PLACE}/new/empty file", mode="600", user="daemon")
files.file(name="files.file absent", path=f"{PLACE}/gone-file", present=False)
files.file(name="always files.file touch", path=f"{PLACE}/touched", touch=True)
files.link(name="files.link", path=f"{PLACE}/link", target="lines")
files.link(name="files.link absent", path=f"{PLACE}/gone-link", present=False)
files.put(
    name="files.put", src=str(MATERIAL / "upload.txt"), dest=f"{PLACE}/put/up load.txt", mode="640", group="daemon"
)
files.put(
    name="files.put times",
    src=str(MATERIAL / "upload.txt"),
    dest=f"{PLACE}/timed",
    mode="644",
    mtime="2001-09-09T01:46:40Z",
)
files.put(name="files.put text", src=io.StringIO('é "$HOME" `id`\nno newline at end'), dest=f"{PLACE}/text")
files.put(name="files.put bytes", src=io.BytesIO(bytes(range(256)) * 1000), dest=f"{PLACE}/bytes", mode="400")
files.put(name="files.put empty", src=io.StringIO(""), dest=f"{PLACE}/nothing", mode="644")
files.put(name="always files.put over a link", src=io.StringIO("through\n"), dest=f"{PLACE}/through")
files.template(
    name="files.template",
    src=str(MATERIAL / "site.conf.j2"),
    dest=f"{PLACE}/site.conf",
    mode="640",
    port=80,
    names=["a", "é"],
)
files.sync(
    name="files.sync", src=str(MATERIAL / "tree"), dest=f"{PLACE}/synced", mode="644", delete=True, exclude="*.out"
)
files.rsync(name="always files.rsync", src=f"{MATERIAL}/tree/", dest=f"{PLACE}/rsynced", flags=["-a"])
files.line(name="files.line", path=f"{PLACE}/lines", line="added = 'it'")
files.line(name="files.line replace", path=f"{PLACE}/lines", line="keep = .*", replace="keep = new")
files.line(name="files.line absent", path=f"{PLACE}/lines", line="drop me", present=False)
files.replace(name="files.replace", path=f"{PLACE}/replaced", text="^first$", replace="1st & only")
files.block(name="files.block", path=f"{PLACE}/blocked", content=["x", "y: '$z'"], after=True, line="first")
files.block(name="files.block absent", path=f"{PLACE}/unblocked", present=False)
files.copy(name="always files.copy", src=f"{PLACE}/to-copy", dest=f"{PLACE}/copied-into", overwrite=True)
files.unarchive(
    name="files.unarchive tar",
    src=f"{REMOTE}/archive.tar.gz",
    dest=f"{PLACE}/unpacked",
    remote_src=True,
    creates=f"{PLACE}/unpacked/packed/file",
    user="daemon",
)
files.unarchive(
    name="files.unarchive zip",
    src=f"{REMOTE}/archive.zip",
    dest=f"{PLACE}/unzipped",
    remote_src=True,
    creates=f"{PLACE}/unzipped/zipped/file",
)
files.download(name="files.download", src=f"file://{REMOTE}/archive.zip", dest=f"{PLACE}/downloaded", mode="644")
files.get(name="always files.get", src=f"{PLACE}/to-fetch", dest=str(Path(host.data.fetched) / "fetched.txt"))
if host.get_fact(File, f"{PLACE}/to-move"):  # or there would be nothing to move
    files.move(name="files.move", src=f"{PLACE}/to-move", dest=f"{PLACE}/moved-into")

# --- server ---
server.group(name="server.group", group="made", gid=4100)
server.group(name="server.group system", group="made-system", system=True)
server.group(name="server.group absent", group="gone-group", present=False)
server.user(
    name="server.user",
    user="maker",
    uid=4101,
    group="made",
    groups=["daemon", "games"],
    home="/home/maker",
    create_home=True,
    shell="/bin/sh",
    comment="Ma Ker",
    password="$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido3OUILO5Ifz5iwMuTS4XMS130MTSuDDl3aCI6WouIL9AjRbLCelDCy.g.",
    public_keys=KEYS,
)
server.user(name="server.user absent", user="gone-user", present=False)
server.user_authorized_keys(name="server.user_authorized_keys", user="keyed", public_keys=KEYS, delete_keys=True)
server.shell(name="always server.shell", commands=[f"printf '%s' \"it's\" > {PLACE}/shell", f"umask > {PLACE}/umask"])
server.shell(
    name="always server.shell with everything",
    commands=[f'cat > {PLACE}/stdin; echo "$NAME"; pwd > {PLACE}/cwd; exit 3'],
    _stdin=["one", "two"],
    _env={"NAME": "va lue"},
    _chdir="/usr",
    _shell_executable="bash",
    _success_exit_codes=[3],
)
server.shell(
    name="always server.shell as another user",
    commands=["id > ~/id; printenv HOME > ~/home"],
    _su_user="keyed",
    _su_shell="/bin/sh",
)
server.script(name="always server.script", src=str(MATERIAL / "script.sh"), args=("one", "two words"))
server.script_template(name="always server.script_template", src=str(MATERIAL / "script.sh.j2"), word="word")
server.hostname(name="server.hostname", hostname="renamed")
server.etc_hosts(name="server.etc_hosts", ip="192.0.2.8", hostnames=["eight", "eight.example.net"])
server.etc_hosts(name="server.etc_hosts absent", ip="192.0.2.9", present=False)
server.timezone(name="server.timezone", timezone="Europe/Amsterdam")
server.sysctl(name="server.sysctl", key="kernel.ostype", value="Linux", persist=True)
server.security_limit(name="server.security_limit", domain="*", limit_type="soft", item="nofile", value=4096)
server.mount(name="server.mount", path="/srv/mounted", device="equality", fs_type="tmpfs", options=["size=1024k"])
server.locale(name="server.locale", locale="en_IE.UTF-8")
server.wait(name="always server.wait", port=int(host.data.port))
server.service(name="server.service", service="toy-on", running=True)
server.kill(name="always server.kill", pid=int(host.data.victim))

# --- services ---
systemd.daemon_reload(name="always systemd.daemon_reload")
systemd.service(name="systemd.service", service="toy-on", running=True, enabled=True)
systemd.service(name="systemd.service off", service="toy-off", running=False, enabled=False)
systemd.service(name="always systemd.service reloaded", service="toy-on", reloaded=True)
sysvinit.service(name="sysvinit.service", service="toy-init", running=True)
sysvinit.enable(name="sysvinit.enable", service="toy-init", start_levels=(4,), stop_levels=(6,))
runit.manage(name="runit.manage", service="toy-runit")
runit.auto(name="runit.auto", service="toy-runit", auto=False)
crontab.crontab(name="crontab.crontab", command="/usr/local/bin/new --all", cron_name="new", minute="*/5", hour=3)
crontab.crontab(name="crontab.crontab absent", command="/usr/local/bin/old", present=False)
crontab.crontab(name="crontab.crontab of a user", user="daemon", command="echo 'x'", special_time="@daily")

# --- packages ---
apt.repo(name="apt.repo", src=f"deb [trusted=yes] file:{REMOTE}/repo ./", filename="local")
apt.repo(name="apt.repo absent", src="deb http://old.example.net/debian old main", present=False, filename="old")
apt.sources_file(name="apt.sources_file absent", filename="gone", present=False)
apt.update(name="apt.update", cache_time=3600)
server.packages(name="server.packages", packages=["equality-server"])
apt.packages(name="apt.packages", packages=["equality-repo"])
apt.packages(name="apt.packages absent", packages=["equality-gone"], present=False, purge=True)
apt.deb(name="apt.deb", src=f"{REMOTE}/equality-local.deb")
apt.upgrade(name="apt.upgrade")
apt.dist_upgrade(name="apt.dist_upgrade")
apt.sources_file(  # after all that reads what the sources have: there is no network
    name="apt.sources_file", filename="new", uris=["http://new.example.net"], suites=["new"], components=["main"]
)
apt.key(name="apt.key", src=str(MATERIAL / "key.asc"), dest="equality.gpg")
gpg.key(name="gpg.key", src=str(MATERIAL / "key.asc"), dest=f"{PLACE}/key.gpg")
if not host.get_fact(File, f"{PLACE}/dearmored.gpg"):  # gpg does not write over a file
    gpg.dearmor(name="gpg.dearmor", src=str(MATERIAL / "key.asc"), dest=f"{PLACE}/dearmored.gpg")
pip.venv(name="pip.venv", path="/srv/venv", python=host.data.python)
pip.packages(
    name="pip.packages",
    packages=["equality-wheel==1.0"],
    pip="/srv/venv/bin/pip",
    extra_install_args=f"--no-index --no-compile --disable-pip-version-check --find-links {REMOTE}/wheels",
)

# --- git ---
git.config(name="git.config", key="user.name", value="Zoë Tester")
git.config(name="git.config system", key="pull.rebase", value="true", system=True)
git.repo(name="always git.repo", src=f"{REMOTE}/origin", dest="/srv/clone", branch="main", pull=False)
git.config(name="git.config of a repository", key="core.pager", value="cat", repo="/srv/clone")
git.worktree(name="git.worktree", repo="/srv/clone", worktree="/srv/worktree", new_branch="feature", pull=False)
git.bare_repo(name="git.bare_repo", path="/srv/bare.git", user="daemon", group="daemon")


# --- nested ---
def nested():
    """Do more when its turn comes, seeing what there is then."""
    files.put(
        name="always nested files.put",
        src=io.StringIO(host.get_fact(Command, "uname -n")),
        dest=f"{PLACE}/nested",
        mode="644",
    )
    server.shell(name="always nested server.shell", commands=[f"echo nested > {PLACE}/nested-shell"])


python.call(name="always python.call", function=nested)
