#!/usr/bin/env bash
# clean_root.sh PACKAGES PG_CONFIG: to be run by `unshare --mount --pid --fork`, as root. Makes a copy-on-write view of this
# machine, without what `make install` has put there, and installs, runs and removes the packages in it. Nothing outside changes.
set -euo pipefail

packages=$1
pg_config=$2
lib=$("$pg_config" --pkglibdir)
share=$("$pg_config" --sharedir)/extension
bin=$("$pg_config" --bindir)

# Gone with the namespace, as every mount below.
scratch=$(mktemp -d)
trap 'umount --recursive --lazy "$scratch"; rmdir "$scratch"' EXIT
mount -t tmpfs none "$scratch"
mkdir "$scratch"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
clean=$scratch/root
mount -t proc proc "$clean/proc"
mount --bind /dev "$clean/dev"
mount -t tmpfs none "$clean/tmp"
rm -rf "$clean$lib/ext_registry.so" "$clean$share"/ext_registry* "$clean"/usr/bin/ext-bridge
mkdir "$clean/tmp/packages"
cp "$packages"/*.deb "$clean/tmp/packages/"

chroot "$clean" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root bin="$bin" bash -euo pipefail -x <<'INSIDE'
cd /tmp
dpkg -i packages/*.deb
getent passwd ext-bridge
[[ $(stat -c '%a %U %G' /etc/ext-bridge/ext-bridge.toml) == '640 root ext-bridge' ]]
ext-bridge --version
zcat /usr/share/man/man1/ext-bridge.1.gz | grep -q 'ext-bridge'
bash -n /usr/share/bash-completion/completions/ext-bridge

install -d -o postgres -m 700 /tmp/pg
postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups env HOME=/tmp/pg "$@"; }
postgres "$bin/initdb" -D /tmp/pg/data --auth=trust >/dev/null
cat >>/tmp/pg/data/postgresql.conf <<-'CONF'
	shared_preload_libraries = 'ext_registry'
	listen_addresses = ''
	unix_socket_directories = '/tmp/pg'
CONF
postgres "$bin/pg_ctl" -D /tmp/pg/data -l /tmp/pg/log -w start >/dev/null || { cat /tmp/pg/log; exit 1; }
sql() { postgres "$bin/psql" -h /tmp/pg -X -A -t -v ON_ERROR_STOP=1 -d postgres "$@"; }
sql -c "create extension ext_registry version '0.1.0'" -c 'alter extension ext_registry update'
sql -c "insert into extensions (id, type, subject) values ('x', 'pre', 's.x')"
[[ $(sql -c "select allowed from ext_select('x')") == t ]]
[[ $(sql -c 'select version = library_version from ext_registry_status()') == t ]]
sql -f /usr/share/doc/postgresql-*-ext-registry/psqlrc | grep -q ':top'
postgres "$bin/pg_ctl" -D /tmp/pg/data -m fast -w stop >/dev/null

# Once more over itself: what the administrator has written stays.
echo '# mine' >>/etc/ext-bridge/ext-bridge.toml
dpkg -i packages/*.deb
grep -q '# mine' /etc/ext-bridge/ext-bridge.toml
[[ $(stat -c '%a %U %G' /etc/ext-bridge/ext-bridge.toml) == '640 root ext-bridge' ]]

for package in packages/*.deb; do
	dpkg-deb --contents "$package" | awk '$1 ~ /^-/ { print substr($6, 2) }'
done >files
[[ $(wc -l <files) -gt 15 ]]
xargs -d '\n' ls -d <files >/dev/null
dpkg -P ext-bridge "$(dpkg-deb -f packages/postgresql-*.deb Package)"
while read -r file; do [[ ! -e $file ]] || { echo "$file is left"; exit 1; }; done <files
[[ ! -e /etc/ext-bridge && ! -e /var/lib/ext-bridge ]]
echo 'installed, run, removed'
INSIDE
