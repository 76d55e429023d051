package service

import "golang.org/x/sys/unix"

// networkFS reports whether a directory is on a file system whose locks cross a network. A file system that cannot
// be asked counts as local.
func networkFS(dir string) (kind string, remote bool) {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return "", false
	}
	kind = unix.ByteSliceToString(s.Fstypename[:])
	switch kind {
	case "nfs", "smbfs", "afpfs", "webdav", "ftp":
		return kind, true
	}
	return "", false
}

// readOnly reports whether the file system of a directory takes no writing. One that cannot be asked counts as one that does.
func readOnly(dir string) bool {
	var s unix.Statfs_t
	return unix.Statfs(dir, &s) == nil && s.Flags&unix.MNT_RDONLY != 0
}
