# shellcheck shell=bash
# What the lab's scripts share; sourced.
# LAB_DIR holds all that the lab keeps: images, boxes, locks. It is safe to delete when "lab/box list" is empty.
LAB_DIR=${LAB_DIR:-/var/tmp/devops-agent-lab}
export LAB_DIR LC_ALL=C.UTF-8

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# usage prints the comment at the head of the script that calls it.
usage() {
	awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$(readlink -f "$0")"
}

# is_name: names become directories, cgroups and host names.
is_name() { [[ $1 =~ ^[a-z][a-z0-9-]{0,30}$ ]]; }

# alive PID [START]: the process runs, is no zombie, and (given START, field 22 of its stat) is still the same one.
alive() {
	local stat
	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	read -ra stat <<<"${stat##*) }"
	[[ ${stat[0]} != [ZX] ]] && [[ -z ${2:-} || ${stat[19]} = "$2" ]]
}

# began PID: prints when it started, for alive.
began() {
	local stat
	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	read -ra stat <<<"${stat##*) }"
	echo "${stat[19]}"
}

# until_true SECONDS COMMAND...: asks every 50 ms.
until_true() {
	local end=$((${EPOCHREALTIME/./} + $1 * 1000000))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "${EPOCHREALTIME/./}" -lt "$end" ] || return 1
		sleep 0.05
	done
}

# locked NAME COMMAND...: runs a function while nobody else is in it.
locked() {
	local lock=$LAB_DIR/lock.$1 held
	shift
	mkdir -p "$LAB_DIR"
	exec {held}>"$lock"
	flock "$held"
	"$@"
	exec {held}>&-
}

# host_needs PACKAGE...: installs what this machine lacks; waits for another apt that runs.
host_needs() {
	local package missing=() log=$LAB_DIR/apt.log
	for package; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	echo "installing: ${missing[*]}" >&2
	mkdir -p "$LAB_DIR"
	local get=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600)
	if ! "${get[@]}" install --no-install-recommends "${missing[@]}" >"$log" 2>&1 </dev/null; then
		if ! { "${get[@]}" update && "${get[@]}" install --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
			tail -n 20 "$log" >&2
			die "cannot install ${missing[*]}"
		fi
	fi
}
