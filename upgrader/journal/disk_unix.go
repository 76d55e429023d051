//go:build unix

package journal

import (
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
