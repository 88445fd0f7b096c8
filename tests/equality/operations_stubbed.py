"""A deploy with the operations whose programs Debian has not, or that no container can run. It states one final state.

Names are as in `operations.py`, which runs before, in the same pyinfra. The programs are the stubs in `tools/`: they
keep what they are told, so that a second run finds it, and note each call. What is there before is made by
`operations_setup.sh`. Only ssh is the real one, to a server on the same machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pyinfra import config
from pyinfra.facts.brew import BrewItemKind
from pyinfra.facts.zfs import ZfsDatasets
from pyinfra.operations import (
    apk,
    apt,
    brew,
    bsdinit,
    cargo,
    choco,
    dnf,
    docker,
    files,
    flatpak,
    freebsd,
    gem,
    go,
    iptables,
    launchd,
    lxd,
    mysql,
    npm,
    openrc,
    opkg,
    pacman,
    pip,
    pipx,
    pkg,
    pkgin,
    postgres,
    postgresql,
    puppet,
    python,
    runit,
    selinux,
    server,
    snap,
    ssh,
    upstart,
    uv,
    vzctl,
    xbps,
    yum,
    zfs,
    zypper,
)

TOOLS = Path(__file__).parent / "tools"
PLACE = "/srv/place"
REMOTE = "/srv/material"
MYSQL: Final[dict[str, Any]] = {"mysql_user": "root", "mysql_password": "it's $ecret"}
POSTGRES: Final[dict[str, Any]] = {"psql_user": "postgres", "psql_password": "it's $ecret"}

config.ENV = {"PATH": f"{TOOLS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
# The kernel need not have zfs for the stub.
ZfsDatasets.check_preconditions = lambda *_: None  # type: ignore[method-assign]

# --- packages of systems ---
apk.update(name="always apk.update")
apk.upgrade(name="always apk.upgrade", available=True)
apk.packages(name="apk.packages", packages=["nginx", "bash"])
apk.packages(name="apk.packages absent", packages=["gone"], present=False)
apt.ppa(name="always apt.ppa", src="ppa:example/tools")
brew.update(name="always brew.update")
brew.upgrade(name="always brew.upgrade")
brew.packages(name="brew.packages", packages=["jq", "openssl"])
brew.packages(name="brew.packages absent", packages="gone", present=False)
brew.cask_upgrade(name="always brew.cask_upgrade")
brew.casks(name="brew.casks", casks=["firefox"])
brew.tap(name="brew.tap", src="example/tap", url="https://git.example.net/tap", trusted=True)
brew.tap(name="brew.tap absent", src="example/gone", present=False)
brew.trust(name="brew.trust", items=["jq"], kind=BrewItemKind.FORMULA, trusted=True)
choco.install(name="always choco.install", _shell_executable=str(TOOLS / "powershell"))
choco.packages(name="choco.packages", packages=["7zip"])
dnf.key(name="always dnf.key", src=f"{REMOTE}/key")
dnf.repo(
    name="dnf.repo", src="made-dnf", baseurl="http://dnf.example.net/$releasever", description="Zoë's", enabled=False
)
dnf.repo(name="dnf.repo absent", src="gone", present=False)
dnf.rpm(name="dnf.rpm", src=f"{REMOTE}/by-dnf.rpm")
dnf.update(name="always dnf.update")
dnf.packages(name="dnf.packages", packages=["vim", "tree"], nobest=False)
dnf.packages(name="dnf.packages absent", packages=["gone-dnf"], present=False)
dnf.module(name="dnf.module", module="postgresql", stream="16")
dnf.module(name="dnf.module disabled", module="ruby", enabled=False)
flatpak.packages(name="flatpak.packages", packages=["org.videolan.VLC"], remote="flathub")
flatpak.packages(name="flatpak.packages absent", packages=["org.example.Gone"], present=False)
freebsd.freebsd_update.update(name="always freebsd.freebsd_update.update")
freebsd.pkg.update(name="always freebsd.pkg.update")
freebsd.pkg.upgrade(name="always freebsd.pkg.upgrade")
freebsd.pkg.install(name="freebsd.pkg.install", package="nginx")
freebsd.pkg.remove(name="freebsd.pkg.remove", package="gone")
freebsd.pkg.autoremove(name="always freebsd.pkg.autoremove")
freebsd.pkg.clean(name="always freebsd.pkg.clean", all_pkg=True)
opkg.update(name="always opkg.update")
opkg.packages(name="opkg.packages", packages=["dnsmasq"], update=False)
pacman.update(name="always pacman.update")
pacman.upgrade(name="always pacman.upgrade")
pacman.packages(name="pacman.packages", packages=["linux"])
pacman.packages(name="pacman.packages absent", packages=["gone"], present=False)
pkg.packages(name="pkg.packages", packages=["curl"], pkg_path="http://pkg.example.net/it/")
pkgin.update(name="always pkgin.update")
pkgin.upgrade(name="always pkgin.upgrade")
pkgin.packages(name="pkgin.packages", packages=["curl"])
snap.package(name="snap.package", packages=["lxd"], classic=True)
snap.package(name="snap.package absent", packages=["gone"], present=False)
xbps.update(name="always xbps.update")
xbps.upgrade(name="always xbps.upgrade")
xbps.packages(name="xbps.packages", packages=["curl"])
xbps.packages(name="xbps.packages absent", packages=["gone"], present=False)
yum.key(name="always yum.key", src=f"{REMOTE}/key")
yum.repo(name="yum.repo", src="made-yum", baseurl="http://yum.example.net/", gpgkey="file:///etc/pki/key")
yum.rpm(name="yum.rpm", src=f"{REMOTE}/by-yum.rpm")
yum.update(name="always yum.update")
yum.packages(name="yum.packages", packages=["nano"])
zypper.repo(name="zypper.repo", src="made-zypper", baseurl="http://zypper.example.net/", type="yast2")
zypper.rpm(name="zypper.rpm", src=f"{REMOTE}/by-zypper.rpm")
zypper.update(name="always zypper.update")
zypper.packages(name="zypper.packages", packages=["htop"])
zypper.packages(name="zypper.packages absent", packages=["gone-zypper"], present=False)

# --- packages of languages ---
cargo.packages(name="cargo.packages", packages=["ripgrep"])
gem.packages(name="gem.packages", packages=["rake"])
go.packages(name="go.packages", packages=["example.net/tool@latest"])
npm.packages(name="npm.packages", packages=["corepack"])
pip.virtualenv(name="pip.virtualenv", path="/srv/virtual env", site_packages=True, always_copy=True)
pipx.packages(name="pipx.packages", packages=["black"])
pipx.upgrade_all(name="always pipx.upgrade_all")
pipx.ensure_path(name="always pipx.ensure_path")
uv.packages(name="uv.packages", packages=["requests"])
uv.pythons(name="uv.pythons", versions=["3.13.4"])
uv.tools(name="uv.tools", tools=["ruff"])
uv.tools_upgrade_all(name="always uv.tools_upgrade_all")
uv.tools_update_shell(name="always uv.tools_update_shell")
uv.venv(name="always uv.venv", path="/srv/uv-venv", clear_existing=True, seed=True)

# --- services ---
bsdinit.service(name="bsdinit.service", service="toy-bsd", running=True, enabled=True)
freebsd.service.service(name="freebsd.service.service", srvname="toy-bsd", srvstate="started")
freebsd.sysrc.sysrc(name="freebsd.sysrc.sysrc", parameter="toy_flags", value="-a -b")
freebsd.sysrc.sysrc(name="freebsd.sysrc.sysrc absent", parameter="gone_enable", value="YES", command="del")
launchd.service(name="launchd.service", service="com.example.toy", running=True)
openrc.service(name="openrc.service", service="toy-openrc", running=True, enabled=True)
runit.service(name="runit.service", service="toy-sv", svdir=f"{PLACE}/service", sourcedir=f"{PLACE}/sv")
runit.wait_runsv(name="always runit.wait_runsv", service="toy-sv", svdir=f"{PLACE}/service", timeout=1)
upstart.service(name="upstart.service", service="toy-upstart", running=False, enabled=False)

# --- containers and machines ---
docker.logout(name="docker.logout", server="gone.example.net")
docker.login(name="docker.login", username="zoe", password="it's $ecret", server="registry.example.net")
docker.image(name="docker.image", image="nginx:1.27")
docker.image(name="docker.image absent", image="gone:1", present=False)
docker.build(name="docker.build", path=f"{PLACE}/build", tags="made:1", build_args={"NAME": "it's"})
docker.network(name="docker.network", network="made", subnet="192.0.2.0/24", labels=["a=b c"])
docker.volume(name="docker.volume", volume="made", labels=["keep=yes"])
docker.plugin(name="docker.plugin", plugin="example/plugin:1")
docker.container(
    name="docker.container", container="made", image="nginx:1.27", ports=["8080:80"], env_vars=["NAME=it's"], start=True
)
docker.container(name="docker.container absent", container="gone", present=False, start=False)
docker.container_exec(name="always docker.container_exec", container="made", command='echo "it\'s" > /tmp/it')
docker.compose(name="always docker.compose", project_directory=f"{PLACE}/build", pull="never")
docker.prune(name="always docker.prune", all=True, filter="label=old")
lxd.container(name="lxd.container", id="made", image="debian:13")
lxd.container(name="lxd.container absent", id="gone", present=False)
vzctl.create(name="always vzctl.create", ctid="101", template="debian-12")
vzctl.set(name="always vzctl.set", ctid="101", hostname="one", ipadd=["192.0.2.4", "192.0.2.5"])
vzctl.mount(name="always vzctl.mount", ctid="101")
vzctl.unmount(name="always vzctl.unmount", ctid="101")
vzctl.start(name="always vzctl.start", ctid="101", force=True)
vzctl.restart(name="always vzctl.restart", ctid="101")
vzctl.stop(name="always vzctl.stop", ctid="101")
vzctl.delete(name="always vzctl.delete", ctid="101")

# --- databases ---
mysql.database(name="mysql.database", database="shop", charset="utf8mb4", **MYSQL)
mysql.database(name="mysql.database absent", database="gone", present=False)
mysql.user(name="mysql.user", user="shop", password="o'ther $ecret", max_connections=5, **MYSQL)
mysql.privileges(name="mysql.privileges", user="shop", privileges=["SELECT", "INSERT"], database="shop", **MYSQL)
mysql.sql(name="always mysql.sql", sql="UPDATE t SET a = 'é' WHERE b = \"`c`\"", database="shop", **MYSQL)
mysql.dump(name="always mysql.dump", dest=f"{PLACE}/my dump.sql", database="shop", **MYSQL)
mysql.load(name="always mysql.load", src=f"{PLACE}/my dump.sql", database="shop", **MYSQL)
postgres.role(name="postgres.role", role="maker", superuser=True, **POSTGRES)
postgres.database(name="postgres.database", database="shop", owner="maker", encoding="UTF8", **POSTGRES)
postgres.sql(name="always postgres.sql", sql="UPDATE t SET a = 'é' WHERE \"b\" = 1", **POSTGRES)
postgres.dump(name="always postgres.dump", dest=f"{PLACE}/pg dump.sql", psql_database="shop", **POSTGRES)
postgres.load(name="always postgres.load", src=f"{PLACE}/pg dump.sql", psql_database="shop", **POSTGRES)
postgresql.role(name="postgresql.role", role="gone", present=False)
postgresql.database(name="postgresql.database", database="other", owner="maker")
postgresql.sql(name="always postgresql.sql", sql="SELECT 1")
postgresql.dump(name="always postgresql.dump", dest=f"{PLACE}/other.sql", psql_database="other")
postgresql.load(name="always postgresql.load", src=f"{PLACE}/other.sql", psql_database="other")

# --- the kernel's ---
files.flags(name="files.flags", path=f"{PLACE}/flagged", flags=["uchg", "hidden"])
iptables.chain(name="iptables.chain", chain="made")
iptables.chain(name="iptables.chain policy", chain="INPUT", policy="DROP")
iptables.chain(name="iptables.chain absent", chain="gone", present=False)
iptables.rule(
    name="iptables.rule", chain="INPUT", jump="ACCEPT", protocol="tcp", source="192.0.2.0/24", destination_port=22
)
iptables.rule(name="iptables.rule 6", chain="INPUT", jump="DROP", protocol="udp", version=6, extras="--dport 53")
selinux.boolean(
    name="selinux.boolean", bool_name="httpd_can_network_connect", value=selinux.Boolean.ON, persistent=True
)
selinux.file_context(name="selinux.file_context", path=f"{PLACE}/flagged", se_type="httpd_sys_content_t")
selinux.file_context_mapping(
    name="selinux.file_context_mapping", target="/srv/web", se_type="httpd_sys_content_t", _shell_executable="bash"
)
selinux.port(name="selinux.port", protocol=selinux.Protocol.TCP, port_num=8080, se_type="http_port_t")
selinux.port(name="selinux.port absent", protocol="tcp", port_num=8081, present=False)
server.modprobe(name="always server.modprobe", module="no_such_module")  # no kernel will tell that it has this
zfs.dataset(name="zfs.dataset", dataset_name="tank/made", properties={"compression": "lz4"})
zfs.dataset(name="zfs.dataset absent", dataset_name="tank/gone", present=False, recursive=True)
zfs.filesystem(name="zfs.filesystem", fs_name="tank/files", mountpoint="/srv/files")
zfs.volume(name="zfs.volume", volume_name="tank/disk", size="10G", sparse=True)
zfs.snapshot(name="zfs.snapshot", snapshot_name="tank/made@first")

# --- other machines ---
puppet.agent(name="always puppet.agent", server="puppet.example.net", port=8140)
ssh.keyscan(name="ssh.keyscan", hostname="127.0.0.1")
ssh.command(name="always ssh.command", hostname="127.0.0.1", command=f"echo \"it's $USER\" > '{PLACE}/by ssh'")
ssh.upload(
    name="always ssh.upload", hostname="127.0.0.1", filename=f"{PLACE}/to-copy", remote_filename=f"{PLACE}/uploaded"
)
ssh.download(name="ssh.download", hostname="127.0.0.1", filename=f"{PLACE}/to-copy", local_filename=f"{PLACE}/by-scp")

# --- last, for it fails ---
python.raise_exception(name="ignored python.raise_exception", exception=ValueError, _ignore_errors=True)
