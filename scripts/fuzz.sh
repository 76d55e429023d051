#!/usr/bin/env bash
# Runs every fuzz target of the module for a time ("30s"), two at a time, a core each.
# Usage: scripts/fuzz.sh TIME
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${2:-}" ]; then # one target: TIME PACKAGE TARGET
	out=$(mktemp)
	trap 'rm -f "$out"' EXIT
	if go test -run '^$' -fuzz "^$3\$" -fuzztime "$1" -fuzzminimizetime 20x -parallel 1 "$2" >"$out" 2>&1; then
		echo "fuzz $2 $3: $(grep -c '^fuzz: elapsed' "$out") reports, $(grep '^fuzz: elapsed' "$out" | tail -n 1 | sed 's/.*execs: \([0-9]*\).*/\1/') inputs"
	elif grep -q 'context deadline exceeded' "$out" && ! grep -q 'Failing input' "$out"; then
		# The go command sometimes takes the end of its own time for a failure; there is no input that fails.
		echo "fuzz $2 $3: ended by its time"
	else
		cat "$out"
		echo "fuzz $2 $3: FAILED"
		exit 1
	fi
	exit
fi

go list -f '{{.ImportPath}} {{.Dir}}' ./... | while read -r package dir; do
	{ grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go 2>/dev/null || true; } | cut -c6- | sort -u | sed "s|^|$package |"
done | xargs -P 2 -L 1 bash "$0" "$1"
