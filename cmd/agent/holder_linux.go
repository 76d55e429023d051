package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lockOwner returns the pid of the process that has a file locked, as the kernel lists it, without touching the lock: a
// try-lock, were it only for an instant, could send an agent away that starts in this instant. 0 when the kernel lists none.
func lockOwner(path string) int {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	data, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	return ownerIn(data, unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
}

// ownerIn reads /proc/locks, whose lines are "1: FLOCK  ADVISORY  WRITE 4242 08:01:131083 0 EOF": device in hexadecimal, inode
// in decimal. A file system that shows another device to stat(2) (btrfs, overlay) is recognised by the inode alone.
func ownerIn(locks []byte, major, minor uint32, inode uint64) (pid int) {
	lines := bufio.NewScanner(bytes.NewReader(locks))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" {
			continue
		}
		owner, err := strconv.Atoi(fields[4])
		device, number, ok := cutLast(fields[5], ":")
		if err != nil || !ok || owner <= 0 || number != strconv.FormatUint(inode, 10) {
			continue
		}
		if device == fmt.Sprintf("%02x:%02x", major, minor) {
			return owner
		}
		pid = owner
	}
	return pid
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// directories returns the pids and directories of the running agents of this machine that can be seen from here. An agent
// goes to its home when it starts.
func directories() map[int]string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	found := map[int]string{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", entry.Name(), "exe"))
		if err != nil || !strings.HasPrefix(filepath.Base(exe), "devopsAgent") {
			continue
		}
		if dir, err := os.Readlink(filepath.Join("/proc", entry.Name(), "cwd")); err == nil {
			found[pid] = dir
		}
	}
	return found
}
