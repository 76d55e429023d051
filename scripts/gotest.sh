#!/usr/bin/env bash
# Runs "go test -v" with the given arguments and prints the result of each package and every skipped test with its
# reason (the line before it); all there is when something failed.
set -uo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
go test -v "$@" >"$log" 2>&1
code=$?
if [ "$code" -ne 0 ]; then
	cat "$log"
	exit "$code"
fi
grep -E '^(ok|\?|FAIL)[[:space:]]' "$log"
grep -B 1 -E '^ *--- SKIP' "$log" | sed 's/^ *--- SKIP/skipped/'
exit 0
