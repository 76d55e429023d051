package lab

import (
	_ "embed" // for the stubs
	"os"
	"path/filepath"
)

// stubJava plays java. It is a shell script: real processes, real login shells, and no compiler on the way.
//
//go:embed stub/java
var stubJava []byte

//go:embed stub/upgrader
var stubUpgrader []byte

// JDKLines is what the stub's java says about itself; the third line is what a server compares (protocol §1.6.3).
const JDKLines = `openjdk version "17.0.99" 2026-01-01
OpenJDK Runtime Environment (build 17.0.99+1-lab)
OpenJDK 64-Bit Server VM (build 17.0.99+1-lab, mixed mode, sharing)
`

// WorkerVersion is what the stub's worker says about itself.
const WorkerVersion = "v9.8.7"

// writeStubs puts the stubs into a directory, from where homes take hard links: a script that was just written cannot be
// executed as long as any child forked meanwhile holds the file open for writing (ETXTBSY).
func writeStubs(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "java"), stubJava, 0o755); err != nil { //nolint:gosec // a program
		return err
	}
	return os.WriteFile(filepath.Join(dir, "upgrader"), stubUpgrader, 0o755) //nolint:gosec // a program
}
