# What the facts find in the container. $1 is the directory that facts.py calls PLACE.
set -eu
place=$1
mkdir -p "$place" && cd "$place"
mkdir -p empty keyrings home/.ssh home/.docker home/go/bin
printf "It's \303\251t\303\251 and \"more\"\n\n  indented \$HOME\n" > "a file with 'quotes' and spaces.txt"
printf 'plain\n' > plain
seq -f 'a%g' 400 > lines
printf 'before\n# BEGIN PYINFRA BLOCK\nxray: one\nalpha: two\n# END PYINFRA BLOCK\nafter\n' > blocks
printf '# hosts\n192.0.2.1 one one.example.net\n192.0.2.1 uno\n2001:db8::1 two # the second\n' > hosts
printf '# keys\n\nssh-ed25519 AAAA one@example.net\nssh-rsa BBBB two@example.net\n' > authorized_keys
ln -s plain link
touch keyrings/one.asc keyrings/two.gpg home/.profile
touch -d 2001-02-03T04:05:06Z plain blocks
chmod 4751 plain

touch home/go/bin/tool && chmod 755 home/go/bin/tool
printf '{"auths": {"registry.example.net": {"auth": "eDp5"}}}\n' > home/.docker/config.json

export HOME="$place/home"
git config --global user.name 'Zoë Tester'
git config --global user.email zoe@example.net
git config --global init.defaultBranch main
git config --system pull.rebase false
git init -q origin
git -C origin commit -q --allow-empty -m first --date=2001-02-03T04:05:06Z
git -C origin tag v1
git clone -q origin clone

# For facts that look at fixed places.
mkdir -p /etc/rc.d /usr/local/etc/rc.d /etc/yum.repos.d /etc/zypp/repos.d /etc/opkg /etc/security /var/service
printf '#!/bin/sh\ntest "$1" = status\n' > /etc/rc.d/sshd
printf '#!/bin/sh\nexit 3\n' > /usr/local/etc/rc.d/nginx
chmod 755 /etc/rc.d/sshd /usr/local/etc/rc.d/nginx
rm -f /etc/init.d/*
printf '#!/bin/sh\n### BEGIN INIT INFO\n### END INIT INFO\nexit 0\n' > /etc/init.d/cron
printf '#!/bin/sh\n### BEGIN INIT INFO\n### END INIT INFO\necho stopped; exit 3\n' > /etc/init.d/nginx
chmod 755 /etc/init.d/cron /etc/init.d/nginx
printf '[baseos]\nname=BaseOS $releasever\nenabled=1\ngpgcheck = 1\n# comment\n\n[extras]\nname=Extras\nenabled=0\n' \
    | tee /etc/yum.repos.d/example.repo > /etc/zypp/repos.d/example.repo
printf 'dest root /\ndest ram /tmp\nlists_dir ext /var/opkg-lists\noption overlay_root /overlay # note\narch all 1\n' \
    > /etc/opkg.conf
printf 'src/gz base http://downloads.example.net/base\n' > /etc/opkg/distfeeds.conf
printf '# custom\nsrc/gz mine http://mine.example.net/feed\n' > /etc/opkg/customfeeds.conf
printf '# limits\n*  soft  nofile  1048576\nroot hard memlock unlimited\n' > /etc/security/limits.conf
printf 'deb [arch=amd64] http://deb.example.net/debian bookworm main contrib\n' > /etc/apt/sources.list.d/equality.list
printf 'Types: deb deb-src\nURIs: http://deb.example.net/two\nSuites: trixie\nComponents: main\n' \
    > /etc/apt/sources.list.d/equality.sources
ln -s /etc/sv/sshd /var/service/sshd
ln -s /etc/sv/dhcpcd /var/service/dhcpcd
touch /run/reboot-required /usr/bin/gnome-session
mkdir -p ~root/.ssh
cp authorized_keys ~root/.ssh/authorized_keys
printf 'zfs 5000000 3 - Live 0x0000000000000000\nspl 120000 1 zfs, Live 0x0000000000000000\n' > modules
