//go:build unix

package journal

import (
	"io/fs"
	"os"
	"syscall"
)

// ownerOf is the account that a home belongs to, where we are root and it is another one's.
func ownerOf(home string) *ids {
	info, err := os.Stat(home)
	if err != nil || os.Geteuid() != 0 {
		return nil
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 {
		return &ids{int(stat.Uid), int(stat.Gid)}
	}
	return nil
}

// stranger reports that something below a home belongs neither to us, nor to root, nor to the home's owner.
func stranger(info fs.FileInfo, home string) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Uid == 0 || int(stat.Uid) == os.Geteuid() {
		return false
	}
	if at, err := os.Stat(home); err == nil {
		if owner, ok := at.Sys().(*syscall.Stat_t); ok && owner.Uid == stat.Uid {
			return false
		}
	}
	return true
}

// inodeOf tells a file from one that has taken its place with the same size and time; 0 when that cannot be told.
func inodeOf(info fs.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(stat.Ino)
	}
	return 0
}
