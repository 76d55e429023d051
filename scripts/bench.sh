#!/usr/bin/env bash
# Measures the figures of the design with the programs in bin/ and writes docs/benchmarks.md. Called by "make bench",
# which builds them first. It takes about five minutes; a quiet machine gives better figures. BENCH=starts (or another
# part of BenchmarkDesign) measures only that and writes no page.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d "${TMPDIR:-/tmp}/devops-agent-bench.XXXXXX")

# Whatever happens, no agent stays: all that was started has a LAB_DIR below this directory in its environment.
cleanup() {
	local code=$? environ
	trap - EXIT INT TERM
	for environ in $(grep -lzs "^LAB_DIR=$work/" /proc/[0-9]*/environ); do
		environ=${environ%/environ}
		kill -9 "${environ#/proc/}" 2>/dev/null || true
	done
	rm -rf "$work"
	exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

doc=$PWD/docs/benchmarks.md
[ -z "${BENCH:-}" ] || doc=
BENCH_BIN=${BENCH_BIN:-$PWD/bin} BENCH_DOC=$doc TMPDIR=$work CGO_ENABLED=0 \
	go test -run '^$' -bench "^BenchmarkDesign\$/${BENCH:+^$BENCH\$}" -benchtime 1x -timeout 10m ./cmd/e2e
[ -z "$doc" ] || echo "written: docs/benchmarks.md"
