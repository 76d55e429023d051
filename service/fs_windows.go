package service

import (
	"path/filepath"

	"golang.org/x/sys/windows"
)

// networkFS reports whether a directory is on a file system whose locks cross a network. A drive that cannot be
// asked counts as local.
func networkFS(dir string) (kind string, remote bool) {
	volume := filepath.VolumeName(dir)
	if len(volume) > 2 && volume[:2] == `\\` && volume[:4] != `\\?\` {
		return "smb", true
	}
	root, err := windows.UTF16PtrFromString(volume + `\`)
	if err != nil {
		return "", false
	}
	return "smb", windows.GetDriveType(root) == windows.DRIVE_REMOTE
}

// readOnly reports whether the file system of a directory takes no writing: nobody mounts one so under a running Windows.
func readOnly(string) bool { return false }
