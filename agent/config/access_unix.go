//go:build unix

package config

import (
	"errors"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// access is who may read .agent.properties.
type access struct {
	mode os.FileMode
	gid  int // group of the file; -1 leaves it alone
}

var private = access{mode: 0o600, gid: -1}

// accessFor makes the file readable for the account that workers run as, when it is another than ours and we are
// root: nobody else can start workers as somebody else (protocol §2.2, §3.6.4).
func accessFor(worker, account string, log *slog.Logger) access {
	if os.Geteuid() != 0 || worker == "" || worker == account {
		return private
	}
	u, err := user.Lookup(worker)
	if err == nil {
		if gid, cerr := strconv.Atoi(u.Gid); cerr == nil {
			return access{mode: 0o640, gid: gid}
		}
		err = errors.New("its group has no number")
	}
	log.Warn("Workers will not be able to read .agent.properties", "user", worker, "err", err)
	return private
}

// tighten takes rights away that nobody should have, and says so: original agents write mode 0666 (weakness W-09).
func (a access) tighten(path string, log *slog.Logger) {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return
	}
	if mode := info.Mode().Perm(); mode&^a.mode != 0 {
		if err := os.Chmod(path, mode&a.mode); err != nil {
			log.Warn("Others can read the agent's secret, and its mode cannot be changed", "path", path, "mode", mode, "err", err)
		} else {
			log.Warn("Others could read the agent's secret; the mode is tighter now", "path", path, "from", mode, "to", mode&a.mode)
		}
	}
	a.apply(path, log)
}

// apply gives the file its group, if it needs one.
func (a access) apply(path string, log *slog.Logger) {
	if a.gid < 0 {
		return
	}
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Gid) == a.gid && info.Mode().Perm() == a.mode {
		return
	}
	if err = os.Chmod(path, 0o600); err == nil { // the old group must not read it in between
		if err = os.Lchown(path, -1, a.gid); err == nil {
			err = os.Chmod(path, a.mode)
		}
	}
	if err != nil {
		log.Warn("Workers will not be able to read .agent.properties", "path", path, "gid", a.gid, "err", err)
	}
}

// readableByAll reports whether every user of the machine may read a file.
func readableByAll(info os.FileInfo) bool { return info.Mode().Perm()&0o004 != 0 }
