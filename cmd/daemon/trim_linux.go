package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dropProgramPages unmaps what of our own file has been used for the start and will not be for hours. The kernel maps the
// rest around every page that is touched, so that otherwise the whole program counts as in use. Nothing is lost: a page
// that is needed again is read from the cache, or the file.
func dropProgramPages() {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer func() { _ = maps.Close() }()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		// 00400000-00578000 r-xp 00000000 fe:01 4242   /path (proc_pid_maps(5))
		f := strings.Fields(lines.Text())
		if len(f) < 6 || !strings.HasPrefix(f[1], "r-") || !strings.HasSuffix(lines.Text(), " "+self) {
			continue // what is writable holds changes
		}
		from, to, _ := strings.Cut(f[0], "-")
		begin, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil || end <= begin {
			continue
		}
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(begin), uintptr(end-begin), unix.MADV_DONTNEED) // advice
	}
}
