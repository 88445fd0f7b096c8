# What the operations find in a container; the same in both. $1 is a Python that has pip in its `venv`.
set -eu
umask 022
mkdir -p /srv/place /srv/material /srv/mounted && cd /srv/material

# Packages, and a repository of some, without a network.
export SOURCE_DATE_EPOCH=1000000000
mkdir repo
package() { # NAME VERSION DIRECTORY [WHAT IT DEPENDS ON]
    file=$3/equality-$1.deb
    mkdir -p deb/DEBIAN deb/usr/share/equality
    {
        printf 'Package: equality-%s\nVersion: %s\nArchitecture: all\n' "$1" "$2"
        printf 'Maintainer: Test <test@example.net>\nDescription: test\n'
        [ $# -lt 4 ] || echo "Depends: equality-$4"
    } > deb/DEBIAN/control
    echo "$2" > "deb/usr/share/equality/$1"
    dpkg-deb --root-owner-group --build deb "$file" > /dev/null
    [ "$3" != repo ] || {
        cat deb/DEBIAN/control
        printf 'Filename: %s\nSize: %s\nSHA256: %s\n\n' "./${file#repo/}" "$(stat -c %s "$file")" \
            "$(sha256sum "$file" | cut -d' ' -f1)"
    } >> repo/Packages
    rm -r deb
}
package local 1.0 .
for name in gone plain needy; do
    package $name 0.9 .
    dpkg -i equality-$name.deb > /dev/null
done
for name in repo server more plain; do
    package $name 1.0 repo
done
package needy 1.0 repo more # for apt.dist_upgrade: apt.upgrade installs nothing new
# The sources of this machine are out of reach.
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d /var/lib/apt/lists
mkdir -p /etc/apt/sources.list.d /var/lib/apt/periodic
printf 'deb http://old.example.net/debian old main\n' > /etc/apt/sources.list.d/old.list
printf 'Types: deb\nURIs: http://old.example.net/two\nSuites: old\nComponents: main\n' \
    > /etc/apt/sources.list.d/gone.sources

# A wheel is a zip file with three metadata files.
mkdir wheels
"$1" - <<'END'
import zipfile
info = "equality_wheel-1.0.dist-info"
with zipfile.ZipFile("wheels/equality_wheel-1.0-py3-none-any.whl", "w") as wheel:
    for name, text in (
        ("equality_wheel.py", "VALUE = 1\n"),
        (f"{info}/METADATA", "Metadata-Version: 2.1\nName: equality-wheel\nVersion: 1.0\n"),
        (f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (f"{info}/RECORD", f"equality_wheel.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"),
    ):
        wheel.writestr(zipfile.ZipInfo(name, (2001, 1, 1, 0, 0, 0)), text)
with zipfile.ZipFile("archive.zip", "w") as archive:
    archive.writestr(zipfile.ZipInfo("zipped/file", (2001, 1, 1, 0, 0, 0)), "zipped\n")
END

# Repositories of git, with commits that are the same everywhere.
export GIT_AUTHOR_DATE='2001-01-01T00:00:00Z' GIT_COMMITTER_DATE='2001-01-01T00:00:00Z'
git -c init.defaultBranch=main init -q origin
echo tracked > origin/tracked
git -C origin add tracked
git -C origin -c user.name=Test -c user.email=test@example.net commit -q -m first
git -C origin branch side

# An archive to unpack, and files to work on.
mkdir packed && echo packed > packed/file
tar --mtime=@1000000000 --sort=name -czf archive.tar.gz packed
cd /srv/place
printf 'first\nkeep = old\ndrop me\nlast\n' > lines
cp lines replaced
cp lines blocked
printf "old\n" > real-through && ln -s real-through through
printf 'before\n# BEGIN PYINFRA BLOCK\nold\n# END PYINFRA BLOCK\nafter\n' > unblocked
printf 'moved\n' > to-move
printf 'copied\n' > to-copy
touch gone-file
mkdir -p gone-directory/within synced moved-into copied-into recursive/deep unpacked unzipped
touch synced/extra recursive/deep/file
ln -s lines gone-link
printf 'fetched from the machine\n' > to-fetch
chmod 666 recursive/deep/file

# Services and tools.
printf '#!/bin/sh\n### BEGIN INIT INFO\n# Provides: toy-init\n# Required-Start:\n# Required-Stop:\n# Default-Start: 2 3 4 5\n# Default-Stop: 0 1 6\n### END INIT INFO\ncase $1 in start) touch /srv/place/init-started ;; status) test -e /srv/place/init-started ;; esac\n' \
    > /etc/init.d/toy-init
chmod 755 /etc/init.d/toy-init
printf '[Unit]\nDescription=toy\n[Service]\nExecStart=/bin/sleep infinity\nExecReload=/bin/touch /srv/place/reloaded\n[Install]\nWantedBy=multi-user.target\n' \
    | tee /etc/systemd/system/toy-on.service > /etc/systemd/system/toy-off.service
systemctl daemon-reload
systemctl enable --quiet --now toy-off
mkdir -p /etc/sv/toy-runit /var/service
# In place of cron's own: the tables are what the operation is about.
cat > /usr/local/bin/crontab <<'END'
#!/bin/sh
user=root
[ "$1" = -l ] && list=1 && shift
[ "$1" = -u ] && user=$2 && shift 2
[ "$1" = -l ] && list=1 && shift
table=/var/spool/equality-cron/$user
mkdir -p "${table%/*}"
if [ -n "$list" ]; then cat "$table" 2> /dev/null || { echo "no crontab for $user" >&2; exit 1; }; else cat "${1:--}" > "$table"; fi
END
chmod 755 /usr/local/bin/crontab
crontab - <<'END'
0 1 * * * /usr/local/bin/old
END
printf '#!/bin/sh\nexec ss -ltn\n' > /usr/local/bin/netstat && chmod 755 /usr/local/bin/netstat
groupadd --gid 4001 gone-group
useradd --uid 4002 --no-create-home gone-user
useradd --uid 4003 --create-home keyed
mkdir -p ~keyed/.ssh
echo 'ssh-rsa OLD old@example.net' > ~keyed/.ssh/authorized_keys
printf '192.0.2.9 gone gone.example.net\n' >> /etc/hosts
printf '# limits\n' > /etc/security/limits.conf
printf '# sysctl\n' > /etc/sysctl.conf
rm -f /etc/localtime && ln -s /usr/share/zoneinfo/Etc/UTC /etc/localtime
sed -i 's/^en_\(DK\|IE\)/# &/' /etc/locale.gen

# What the stubs in tools/ answer before they are told anything, each line one thing that is there.
mkdir -p /srv/state && cd /srv/state
for list in apk brew docker-container docker-running lxc mysql-databases pacman pkg psql-roles snap xbps; do
    echo gone > $list
done
echo gone:1 > docker-image
echo org.example.Gone > flatpak
printf 'gone-dnf\ngone-zypper\n' > rpm
echo example/gone > brew-taps
echo toy-upstart | tee initctl-services > initctl-running
echo com.example.toy > launchctl-services
echo toy-bsd > rc-services
echo gone_enable=YES > sysrc
printf ':INPUT ACCEPT [0:0]\n:gone - [0:0]\n' > iptables-filter-chains
printf 'tank/gone\ttype\tfilesystem\tlocal\ntank\ttype\tfilesystem\tlocal\n' > zfs
echo 'gone_port_t                     tcp      8081' > semanage-port
mkdir -p /root/.docker
printf '{"auths": {"gone.example.net": {"auth": "eDp5"}}}\n' > /root/.docker/config.json
mkdir -p /etc/yum.repos.d /etc/zypp/repos.d /etc/init /etc/rc.d /usr/local/etc/rc.d
printf '[gone]\n' > /etc/yum.repos.d/gone.repo
printf '#!/bin/sh\ncase $1 in start) touch /srv/place/bsd-started ;; *) test -e /srv/place/bsd-started ;; esac\n' \
    > /etc/rc.d/toy-bsd
chmod 755 /etc/rc.d/toy-bsd
echo '# rc' > /etc/rc.conf.local
mkdir -p /srv/place/sv/toy-sv /srv/place/service /srv/place/build
echo 'FROM scratch' > /srv/place/build/Dockerfile
touch /srv/place/flagged /srv/material/key

# A server of SSH; /srv/material/ssh_key is its own key, and root's.
cat > /srv/material/sshd_config <<'END'
HostKey /srv/material/ssh_key
ListenAddress 127.0.0.1
PidFile none
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
END
usermod --password '*' root  # a locked account may not even log in by key
mkdir -p /root/.ssh /run/sshd
cp /srv/material/ssh_key.pub /root/.ssh/authorized_keys
cp /srv/material/ssh_key /root/.ssh/id_ed25519
chmod 600 /root/.ssh/id_ed25519 /srv/material/ssh_key
rm -f /root/.ssh/known_hosts
systemd-run --quiet /usr/sbin/sshd -D -f /srv/material/sshd_config
