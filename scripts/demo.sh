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
	if [ -x "$home/devopsAgent" ]; then "$home/devopsAgent" stop --now --home "$home" >/dev/null 2>&1 || true; fi
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

say "agent: enrolled with a token, and kept alive by devopsDaemon"
for program in devopsAgent devopsDaemon devopsWorker upgrader; do cp "$bin/$program$suffix" "$home/$program"; done
agent=$home/devopsAgent
"$controller" enroll-token --data "$data" 2>"$dir/controller-token.log" |
	"$agent" install direct --home "$home" --gateway "$gateway" --token-file -
await "the agent's first contact" grep -q 'Startup accepted' "$home/logs/devopsAgent.log"
"$controller" agents --data "$data"

say "build: three steps, its log as it comes; in the middle of it the agent is killed"
"$controller" run --data "$data" "$here/demo.yaml" > >(tee "$dir/build.log") &
build=$!
await "the third step" grep -qs 'working, second 2' "$dir/build.log"
victim=$(cat "$home/runtime/agent.pid")
echo "!! kill -9 $victim"
kill -9 "$victim"
if ! wait "$build"; then
	echo "demo: the build failed" >&2
	exit 1
fi
await "the report of the build" sh -c '! ls "$1"/runtime/builds/*.json' - "$home"

say "status"
"$agent" status --home "$home"

say "summary"
"$controller" builds --data "$data"

if [ -n "${KEEP:-}" ]; then
	trap - EXIT INT TERM
	cat <<END

Still running, in $dir:
  agent       $home, log in logs/devopsAgent.log
  controller  pid ${pids[0]}, $gateway

Try next:
  $agent status --watch
  $controller --data $data run -- 'echo hello; sleep 3; uname -a'
  $controller --data $data run $here/demo.yaml
  $controller --data $data builds
  $controller --data $data logs BUILD
  $agent drain --wait; $agent resume
  $agent uninstall; kill ${pids[0]}; rm -r $dir      # the end
END
	exit 0
fi
say "end: agent and controller stopped, nothing left running"
