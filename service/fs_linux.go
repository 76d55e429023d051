package service

import "golang.org/x/sys/unix"

// networkFS reports whether a directory is on a file system whose locks cross a network. A file system that cannot
// be asked counts as local.
func networkFS(dir string) (kind string, remote bool) {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return "", false
	}
	return networkMagic(int64(uint32(s.Type)))
}

// networkMagic names the file systems that are refused (statfs(2)).
func networkMagic(magic int64) (kind string, remote bool) {
	switch magic {
	case unix.NFS_SUPER_MAGIC:
		return "nfs", true
	case unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC:
		return "smb", true
	case unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC, unix.CODA_SUPER_MAGIC, unix.NCP_SUPER_MAGIC:
		return "afs, coda or ncp", true
	}
	return "", false
}

// readOnly reports whether the file system of a directory takes no writing. One that cannot be asked counts as one that does.
func readOnly(dir string) bool {
	var s unix.Statfs_t
	return unix.Statfs(dir, &s) == nil && s.Flags&unix.ST_RDONLY != 0
}
