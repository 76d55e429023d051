package service

import "os"

// Stamp tells one content of a file from another without reading it. The zero Stamp is that of no file.
type Stamp struct {
	inode   uint64
	size    int64
	changed int64 // nanoseconds since 1970
	mode    os.FileMode
}

// StampOf is the stamp of the file at path, or of what a link there leads to.
func StampOf(path string) Stamp {
	info, err := os.Stat(path)
	if err != nil {
		return Stamp{}
	}
	return Stamp{inode: inodeOf(info), size: info.Size(), changed: info.ModTime().UnixNano(), mode: info.Mode()}
}
