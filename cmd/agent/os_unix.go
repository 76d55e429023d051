//go:build unix

package main

import (
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

// narrowUmask makes every file of ours private and returns the umask that builds get: the one we were started with.
func narrowUmask() int {
	if before := syscall.Umask(0o077); before != 0 {
		return before
	}
	return 0o022 // nobody means "writable by everyone"
}

// surviveReaders keeps the agent, and the builds under it, alive when whoever read its standard error is gone: Go
// ends a program that writes there then. A signal that is caught, unlike one that is ignored, is as ever in children.
func surviveReaders() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// isRoot reports whether this account may do everything.
func isRoot() bool { return os.Geteuid() == 0 }

// ownerID is the id of the account that a file belongs to.
func ownerID(path string) (string, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return "", false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", false
	}
	return strconv.FormatUint(uint64(stat.Uid), 10), true
}

// mustSudo reports whether a home belongs to somebody else and this account is not root.
func mustSudo(home string) bool {
	uid, ok := ownerID(home)
	return ok && !isRoot() && uid != strconv.Itoa(os.Geteuid())
}

// isProgram reports whether a file can be run.
func isProgram(info os.FileInfo) bool {
	return info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}
