//go:build !linux

package journal

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// userOf finds a process that runs a program below a directory; 0 for none, -1 when nobody can tell. macOS is asked by ps, which
// shows the path that was called. Windows does not let a directory be renamed that is in use, which is how its removal begins.
func userOf(dir string) int {
	if runtime.GOOS == "windows" {
		return 0
	}
	out, err := exec.Command("/bin/ps", "-axo", "pid=,comm=").Output()
	if err != nil {
		return -1
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		resolved = dir
	}
	for line := range strings.Lines(string(out)) {
		pid, program, ok := strings.Cut(strings.TrimSpace(line), " ")
		program = strings.TrimSpace(program)
		if n, err := strconv.Atoi(pid); ok && err == nil && (strings.HasPrefix(program, dir+"/") || strings.HasPrefix(program, resolved+"/")) {
			return n
		}
	}
	return 0
}
