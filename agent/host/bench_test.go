package host

import (
	"runtime"
	"testing"
)

// BenchmarkFacts is what an agent asks of this package before its first request, everything being remembered.
func BenchmarkFacts(b *testing.B) {
	for b.Loop() {
		p := NewProber(b.TempDir(), Exec, quiet())
		_, _, _ = Name(), DetectOS(runtime.GOOS), OSVersion()
		_ = IP(b.Context(), "http://127.0.0.1:8080", nil)
		_ = p.Get("/nowhere/jdk", "/nowhere/jdk17")
	}
}
