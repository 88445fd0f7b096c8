# What the operations find in a container; the same in both. $1 is a Python that has pip in its `venv`.
set -eu
umask 022
mkdir -p /srv/place /srv/material /srv/mounted && cd /srv/material

# A package, and a repository of it, without a network.
mkdir -p deb/DEBIAN deb/usr/share/equality
printf 'Package: equality-%s\nVersion: 1.0\nArchitecture: all\nMaintainer: Test <test@example.net>\nDescription: test\n' \
    local > deb/DEBIAN/control
echo local > deb/usr/share/equality/local
export SOURCE_DATE_EPOCH=1000000000
dpkg-deb --root-owner-group --build deb equality-local.deb > /dev/null
sed -i s/equality-local/equality-repo/ deb/DEBIAN/control
mv deb/usr/share/equality/local deb/usr/share/equality/repo
mkdir repo
dpkg-deb --root-owner-group --build deb repo/equality-repo.deb > /dev/null
{
    cat deb/DEBIAN/control
    echo "Filename: ./equality-repo.deb"
    echo "Size: $(stat -c %s repo/equality-repo.deb)"
    echo "SHA256: $(sha256sum repo/equality-repo.deb | cut -d' ' -f1)"
} > repo/Packages
sed -i s/equality-repo/equality-gone/ deb/DEBIAN/control
mv deb/usr/share/equality/repo deb/usr/share/equality/gone
dpkg-deb --root-owner-group --build deb equality-gone.deb > /dev/null
dpkg -i equality-gone.deb > /dev/null
# The sources of this machine are out of reach.
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d /var/lib/apt/lists
mkdir -p /etc/apt/sources.list.d /var/lib/apt/periodic
printf 'deb http://old.example.net/debian old main\n' > /etc/apt/sources.list.d/old.list

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
