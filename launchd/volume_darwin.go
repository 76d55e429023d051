package launchd

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// StatVolume asks the file system of a directory about itself.
func StatVolume(dir string) (Volume, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return Volume{}, fmt.Errorf("ask the file system of %s: %w", dir, err)
	}
	return Volume{
		Mount:     unix.ByteSliceToString(s.Mntonname[:]),
		Network:   s.Flags&unix.MNT_LOCAL == 0,
		Removable: s.Flags&unix.MNT_REMOVABLE != 0,
	}, nil
}
