#!/usr/bin/env bash
# Debian packages of what `make install bridge` has built, into target/deb: the extension for the Postgres of PG_CONFIG, and the
# bridge. The same commit gives the same bytes. Needs dpkg-deb only.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

command -v dpkg-deb >/dev/null || die "dpkg-deb is missing: packages for Debian are built on Debian and its like"
pg_config=$("$root/scripts/pg-config")
major=$(pg_major "$pg_config")
version=$(sed -nE 's/^version *= *"(.*)"$/\1/p' "$root/Cargo.toml" | head -n 1)
architecture=$(dpkg --print-architecture)
# A symbol of a newer libc than the one built with cannot have been used.
libc=$(ldd --version | sed -nE '1s/.* ([0-9]+\.[0-9]+)$/\1/p')
out=$target/deb
SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct 2>/dev/null || stat -c %Y "$root/Cargo.toml")
export SOURCE_DATE_EPOCH
umask 022

# What both have: the changelog, the licence, the description of the package.
# documents STAGE PACKAGE
documents() {
	local folder=$1/usr/share/doc/$2
	install -d "$folder"
	gzip -9n <"$root/CHANGELOG.md" >"$folder/changelog.gz"
	install -m 644 "$root/LICENSE" "$folder/copyright"
	install -m 644 "$root/README.md" "$folder/README.md"
}

# control STAGE PACKAGE DEPENDS, with the description on standard input
control() {
	install -d "$1/DEBIAN"
	{
		printf 'Package: %s\nVersion: %s\nArchitecture: %s\nSection: database\nPriority: optional\n' "$2" "$version" "$architecture"
		printf 'Maintainer: ext_registry developers <ext_registry@localhost>\n'
		printf 'Installed-Size: %s\nDepends: %s\nDescription: ' "$(du -sk --exclude=DEBIAN "$1" | cut -f1)" "$3"
		cat
	} >"$1/DEBIAN/control"
	(cd "$1" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' md5sum) >"$1/DEBIAN/md5sums"
}

# build STAGE PACKAGE
build() {
	find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
	dpkg-deb --root-owner-group --build "$1" "$out/$2_${version}_$architecture.deb" >&2
	printf '%s\n' "$out/$2_${version}_$architecture.deb"
}

package_extension() {
	local stage=$out/stage-extension package=postgresql-$major-ext-registry lib share
	lib=$("$pg_config" --pkglibdir)
	share=$("$pg_config" --sharedir)/extension
	[[ $lib == /usr/* ]] || die "$pg_config is not of a Debian package: its extensions lie in $lib"
	[[ -f $lib/ext_registry.so && -f $share/ext_registry--$version.sql ]] || die "ext_registry $version is not installed; run 'make install' first"
	install -D -m 644 "$lib/ext_registry.so" "$stage$lib/ext_registry.so"
	if command -v strip >/dev/null; then strip --strip-debug "$stage$lib/ext_registry.so"; fi
	install -d "$stage$share"
	install -m 644 "$share/ext_registry.control" "$share/ext_registry--$version.sql" "$root"/sql/upgrade/*.sql "$stage$share/"
	documents "$stage" "$package"
	install -m 644 "$root/sql/adopt_beamline.sql" "$root/sql/psqlrc" "$stage/usr/share/doc/$package/"
	control "$stage" "$package" "postgresql-$major, libc6 (>= $libc), libgcc-s1" <"$root/deploy/deb/extension.description"
	build "$stage" "$package"
}

package_bridge() {
	local stage=$out/stage-bridge program=$target/release/ext-bridge
	[[ -x $program ]] || die "$program is missing; run 'make bridge' first"
	install -D -m 755 "$program" "$stage/usr/bin/ext-bridge"
	if command -v strip >/dev/null; then strip "$stage/usr/bin/ext-bridge"; fi
	install -D -m 644 "$root/deploy/systemd/ext-bridge.service" "$stage/lib/systemd/system/ext-bridge.service"
	install -D -m 644 "$root/deploy/systemd/ext-bridge.sysusers" "$stage/usr/lib/sysusers.d/ext-bridge.conf"
	install -D -m 644 "$root/deploy/ext-bridge.toml" "$stage/etc/ext-bridge/ext-bridge.toml"
	install -d "$stage"/usr/share/{man/man1,bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}
	"$program" man | gzip -9n >"$stage/usr/share/man/man1/ext-bridge.1.gz"
	"$program" completions bash >"$stage/usr/share/bash-completion/completions/ext-bridge"
	"$program" completions zsh >"$stage/usr/share/zsh/vendor-completions/_ext-bridge"
	"$program" completions fish >"$stage/usr/share/fish/vendor_completions.d/ext-bridge.fish"
	documents "$stage" ext-bridge
	install -d "$stage/usr/share/doc/ext-bridge/examples"
	cp -r "$root"/deploy/{nats,prometheus,grafana} "$stage/usr/share/doc/ext-bridge/examples/"
	control "$stage" ext-bridge "libc6 (>= $libc), libgcc-s1" <"$root/deploy/deb/bridge.description"
	echo /etc/ext-bridge/ext-bridge.toml >"$stage/DEBIAN/conffiles"
	install -m 755 "$root"/deploy/deb/{postinst,prerm,postrm} "$stage/DEBIAN/"
	build "$stage" ext-bridge
}

rm -rf "$out"
install -d "$out"
package_extension
package_bridge
