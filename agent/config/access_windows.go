package config

import (
	"log/slog"
	"os"
)

// access is who may read .agent.properties. On Windows the access list of the home directory says so.
type access struct {
	mode os.FileMode
}

var private = access{mode: 0o600}

func accessFor(string, string, *slog.Logger) access { return private }

func (access) tighten(string, *slog.Logger) {}

func (access) apply(string, *slog.Logger) {}

// readableByAll cannot be seen in a mode on Windows; the access list of the home directory says who reads what is in it.
func readableByAll(os.FileInfo) bool { return false }
