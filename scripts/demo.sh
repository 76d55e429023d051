#!/usr/bin/env bash
# A build from a controller through the agent into a worker and back, on this machine, without root and without Java.
# Called by "make demo"; KEEP=1 leaves everything running and says what to try next.
set -euo pipefail
bin=$(cd "${BIN:-bin}" && pwd)
suffix=${SUFFIX:-_linux}
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/devops-agent-demo.XXXXXX")
data=$dir/controller
home=$dir/agent
controller=$bin/devopsController$suffix
pids=()

stop() {
	local pid
	for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
	for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
}
cleanup() {
	local code=$?
	trap - EXIT INT TERM
	if [ "$code" -ne 0 ]; then
		echo
		echo "demo: failed with code $code; the end of the agent's log:"
		tail -n 20 "$home/logs/devopsAgent.log" "$dir/controller.log" 2>/dev/null || true
	fi
	stop
	rm -rf "$dir"
	exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n== %s\n' "$*"; }
# wait until a command succeeds, at most 20 s
await() {
	local what=$1 deadline=$((SECONDS + 20))
	shift
	until "$@" >/dev/null 2>&1; do
		if [ "$SECONDS" -ge "$deadline" ]; then
			echo "demo: $what did not happen within 20 s" >&2
			return 1
		fi
		sleep 0.05
	done
}

say "controller: BK-CI for one machine, on a free port of 127.0.0.1"
mkdir -p "$data" "$home"
"$controller" serve --data "$data" --listen 127.0.0.1:0 >"$dir/controller.log" 2>&1 &
pids+=($!)
await "the start of the controller" test -s "$data/endpoint.json"
gateway=$(sed -n 's/.*"url": *"\([^"]*\)".*/\1/p' "$data/endpoint.json")
echo "$gateway"

say "agent: enrolled with a token, started in a home of its own"
cp "$bin/devopsAgent$suffix" "$home/devopsAgent"
cp "$bin/devopsWorker$suffix" "$home/devopsWorker"
"$controller" enroll-token --data "$data" 2>"$dir/controller-token.log" | "$home/devopsAgent" enroll --gateway "$gateway"
"$home/devopsAgent" &
pids+=($!)
await "the agent's first contact" grep -q 'Startup accepted' "$home/logs/devopsAgent.log"
"$controller" agents --data "$data"

say "build: three steps, its log as it comes"
"$controller" run --data "$data" "$here/demo.yaml"

say "summary"
"$controller" builds --data "$data"

if [ -n "${KEEP:-}" ]; then
	trap - EXIT INT TERM
	cat <<END

Still running, in $dir:
  agent       pid ${pids[1]}, log $home/logs/devopsAgent.log
  controller  pid ${pids[0]}, $gateway

Try next:
  $controller --data $data run -- 'echo hello; sleep 3; uname -a'
  $controller --data $data run $here/demo.yaml
  $controller --data $data builds
  $controller --data $data logs BUILD
  kill -9 ${pids[1]}; $home/devopsAgent      # a build that runs meanwhile goes on
  kill ${pids[*]}; rm -r $dir                # the end
END
	exit 0
fi
say "end: agent and controller stopped, nothing left running"
