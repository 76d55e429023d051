package journal

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// userOf finds a process that has something below a directory open as a program or library; 0 for none that we may look at,
// -1 when nobody can tell.
func userOf(dir string) int {
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return -1
	}
	looked := false
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		maps, err := os.ReadFile("/proc/" + entry.Name() + "/maps")
		if err != nil {
			continue
		}
		looked = true
		if strings.Contains(string(maps), " "+dir+"/") {
			return pid
		}
	}
	if !looked {
		return -1 // not even ourselves: this is no /proc
	}
	return 0
}
