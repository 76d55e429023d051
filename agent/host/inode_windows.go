package host

import "io/fs"

// inode is not worth opening the file for: path, size and time tell replaced files apart.
func inode(fs.FileInfo) uint64 { return 0 }
