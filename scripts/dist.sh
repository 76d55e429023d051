#!/usr/bin/env bash
# Portable archives in dist/, one per platform, and their SHA256SUMS: the same bytes for the same commit, version and Go.
# Called by "make dist"; arguments are platforms (linux/amd64 ...), without any it makes them all.
# VERSION and LDFLAGS come from the Makefile; SOURCE_DATE_EPOCH sets the time of all files, else it is that of the commit.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${VERSION:?is set by make dist}" "${LDFLAGS:?is set by make dist}"
out=${DIST_DIR:-$PWD/dist} # absolute
epoch=${SOURCE_DATE_EPOCH:-$(git show -s --format=%ct HEAD 2>/dev/null || echo 0)}
umask 022
export LC_ALL=C TZ=UTC CGO_ENABLED=0
[ $# -gt 0 ] || set -- linux/amd64 linux/arm64 macos/amd64 macos/arm64 windows/amd64

need() { # program package
	command -v "$1" >/dev/null && return
	if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
	else
		echo "dist.sh: $1 is missing (Debian: apt install $2)" >&2
		return 1
	fi
}
if ! tar --version 2>/dev/null | grep -q GNU; then
	echo "dist.sh: needs GNU tar" >&2
	exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# program FOLDER FILE GOOS GOARCH
program() {
	GOOS=$3 GOARCH=$4 go build -trimpath -ldflags "$LDFLAGS" -o "$2" "./cmd/$1"
}

# What is the same for all: completions and manual pages, printed by an agent of this machine.
program agent "$work/devopsAgent" "$(go env GOHOSTOS)" "$(go env GOHOSTARCH)"
mkdir -p "$work/common/completions" "$work/common/man"
"$work/devopsAgent" completion bash >"$work/common/completions/devopsAgent.bash"
"$work/devopsAgent" completion zsh >"$work/common/completions/_devopsAgent"
"$work/devopsAgent" completion fish >"$work/common/completions/devopsAgent.fish"
"$work/devopsAgent" completion powershell >"$work/common/completions/devopsAgent.ps1"
"$work/devopsAgent" man --dir "$work/common/man"
cp LICENSE CHANGELOG.md "$work/common/"
cp docs/portable.md "$work/common/README.md"
cp docs/operating.md "$work/common/OPERATING.md"
cp docs/configuration.md "$work/common/CONFIGURATION.md"
cp agent/config/testdata/agent.toml "$work/common/agent.toml.example"

mkdir -p "$out"
for platform; do
	system=${platform%/*} arch=${platform#*/} exe=
	goos=$system
	case $system in
	linux) ;;
	macos) goos=darwin ;;
	windows) exe=.exe ;;
	*)
		echo "dist.sh: no such platform: $platform" >&2
		exit 2
		;;
	esac
	name=devops-agent-$VERSION-$system-$arch
	dir=$work/$name
	cp -R "$work/common" "$dir"
	mkdir "$dir/tmp"
	for p in devopsAgent:agent devopsDaemon:daemon devopsWorker:worker upgrader:upgrader installer:installer; do
		program "${p#*:}" "$dir/${p%:*}$exe" "$goos" "$arch"
	done
	# Where original agents look for them. Not a link: one that fetches a new tmp/upgrader writes over what is there.
	cp "$dir/upgrader$exe" "$dir/tmp/upgrader$exe"
	ln "$dir/installer$exe" "$dir/tmp/installer$exe"
	cp scripts/"$system"/* "$dir/"
	find "$dir" -type d -exec chmod 755 {} +
	find "$dir" -type f -exec chmod 644 {} +
	find "$dir" -maxdepth 1 -name '*.sh' -exec chmod 755 {} +
	chmod 755 "$dir"/devops*"$exe" "$dir"/{,tmp/}{upgrader,installer}"$exe"
	find "$dir" -exec touch -h -d "@$epoch" {} +
	if [ "$system" = windows ]; then
		need zip zip
		file=$name.zip
		rm -f "$out/$file"
		(cd "$dir" && find . -type f | sed 's|^\./||' | sort | zip -q -X -9 -@ "$out/$file")
	else
		file=$name.tar.gz
		(cd "$dir" && find . -mindepth 1 | sed 's|^\./||' | sort |
			tar --create --format=ustar --owner=0 --group=0 --numeric-owner --mtime="@$epoch" --no-recursion --files-from=- |
			gzip -9 -n >"$out/$file")
	fi
	rm -rf "$dir"
	echo "dist: $file"
done
# The sums are of all that lies there, made now or before, here or by "make packages"; a signature was of another list.
(cd "$out" && rm -f SHA256SUMS.minisig && find . -maxdepth 1 -type f ! -name '.*' ! -name 'SHA256SUMS*' ! -name '*.minisig' | sed 's|^\./||' | LC_ALL=C sort | xargs sha256sum >SHA256SUMS)
