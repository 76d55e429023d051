#!/usr/bin/env bash
# Runs "go test" with the given arguments and prints a line for each package, every skipped test with its reason, what
# failed with all that it printed, and at the very end the names of what failed with their first lines.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
gotestsum=bin/tools/gotestsum
[ -x "$gotestsum" ] || GOOS='' GOARCH='' GOFLAGS='' GOBIN=$PWD/bin/tools go install gotest.tools/gotestsum@v1.13.0 || exit 1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$gotestsum" --format pkgname --format-icons text --no-color ${TESTS_JSON:+--jsonfile "$TESTS_JSON"} -- "$@" | tee "$log"
code=${PIPESTATUS[0]}
[ "$code" = 0 ] || awk '/^=== FAIL: /{ sub(/^=== FAIL: /, ""); print "failed: " $0; left = 3; next } /^===|^DONE /{ left = 0 } left-- > 0 && NF { print substr($0, 1, 240) }' "$log"
exit "$code"
