#!/usr/bin/env bash
# Plays FLEET simulated agents (10,000 unless told otherwise) against the controller in bin/ and writes docs/fleetsim.md and its
# drawings. Called by "make bench-fleet", which builds the programs first. 10,000 agents take about 20 minutes, 1,000 about 10.
# PROFILES=idle-wait,restart plays only these and writes no page; a quiet machine gives better figures.
set -euo pipefail
cd "$(dirname "$0")/.."
fleet=${FLEET:-10000}
length=1m down=5m
if [ "$fleet" -le 2000 ]; then
	length=20s down=2m
fi
# a connection for each agent, on both sides
ulimit -Hn "$(cat /proc/sys/fs/nr_open 2>/dev/null || ulimit -Hn)" 2>/dev/null || true # root may
ulimit -n "$(ulimit -Hn)"
args=(--controller "bin/devopsController$SUFFIX" --agents "$fleet" --length "${LENGTH:-$length}" --down "${DOWN:-$down}")
if [ -n "${PROFILES:-}" ]; then
	args+=(--profiles "$PROFILES")
else
	args+=(--out docs)
fi
"bin/fleetsim$SUFFIX" "${args[@]}"
[ -n "${PROFILES:-}" ] || echo "written: docs/fleetsim.md, docs/fleetsim/"
