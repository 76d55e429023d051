//go:build unix

package host

import "golang.org/x/sys/unix"

// ReadOnly reports whether the file system of a directory takes no writing: mounted so, or put so by the system after
// errors of the disk.
func ReadOnly(dir string) bool {
	const readOnly = 1 // ST_RDONLY of Linux, MNT_RDONLY of macOS
	var stat unix.Statfs_t
	return unix.Statfs(dir, &stat) == nil && stat.Flags&readOnly != 0
}
