package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/shirou/gopsutil/v4/disk"
)

// workerClass is the class of the worker that prints its version (protocol §3.3).
const workerClass = "com.tencent.devops.agent.AgentVersionKt"

// JarVersion asks a worker jar that is not in use for its version, "" when it tells none (protocol §3.6.3). It runs
// Java and takes about a second.
func (p *Prober) JarVersion(ctx context.Context, jdkDir, jdk17Dir, jar string) string {
	java := JavaPath(jdk17Dir, p.goos)
	if _, err := os.Stat(java); err != nil {
		java = JavaPath(jdkDir, p.goos)
	}
	return p.JarVersionBy(ctx, java, jar)
}

// JarVersionBy is JarVersion by a java program that need not be the one in use.
func (p *Prober) JarVersionBy(ctx context.Context, java, jar string) string {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	output, err := p.run(ctx, p.home, java, "-Djava.io.tmpdir="+filepath.Join(p.home, "build_tmp"), "-Xmx256m", "-cp", jar, workerClass)
	if err != nil {
		p.log.Warn("Worker jar tells no version", "path", jar, "err", err)
		return ""
	}
	return jarVersion(string(output))
}

// FreeBytes is the room that is left for us on the file system of a directory: none on one that takes no writing.
func FreeBytes(dir string) (uint64, error) {
	usage, err := disk.Usage(dir)
	if err != nil {
		return 0, fmt.Errorf("look for room on %s: %w", dir, err)
	}
	if ReadOnly(dir) {
		return 0, nil
	}
	return usage.Free, nil
}
