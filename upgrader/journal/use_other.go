//go:build !linux

package journal

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// userOf finds a process that runs a program below a directory; 0 for none. Windows does not let go of what is in use, so that the
// removal fails there; macOS is asked by ps, which shows the path that was called.
func userOf(dir string) int {
	if runtime.GOOS == "windows" {
		if err := os.Rename(dir, dir+".free"); err != nil {
			return -1
		}
		if err := os.Rename(dir+".free", dir); err != nil {
			return -1
		}
		return 0
	}
	out, err := exec.Command("/bin/ps", "-axo", "pid=,comm=").Output()
	if err != nil {
		return -1
	}
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved
	}
	for line := range strings.Lines(string(out)) {
		pid, program, ok := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.Atoi(pid); ok && err == nil && strings.HasPrefix(strings.TrimSpace(program), dir+"/") {
			return n
		}
	}
	return 0
}
