package e2e

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// envInt reads a size of a test from the environment.
func envInt(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number", name, text)
	}
	return n
}

// labSeed is LAB_SEED, or another one each time; it is logged.
func labSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(envInt(t, "LAB_SEED", int(time.Now().UnixNano()%1_000_000)+1))
	t.Logf("LAB_SEED=%d", seed)
	return seed
}
