//go:build unix

package upgrader

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// giveAway gives what root unpacked to the account that the home belongs to.
func (u *Upgrader) giveAway(dir string) error {
	info, err := os.Stat(u.Inst.Home)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || owner.Uid == 0 {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
}
