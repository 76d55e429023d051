package config

import (
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkStart is what an agent does with both files before its first request.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, PropertiesFile), []byte(seedFile), 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		cfg, err := LoadConfig(filepath.Join("testdata", "agent.toml"))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Open(dir, cfg, quiet()); err != nil {
			b.Fatal(err)
		}
	}
}
