package journal

import "io/fs"

// ownerOf is nobody: a new file inherits the access list of its directory.
func ownerOf(string) *ids { return nil }

// stranger is nobody: the access list of home says who may write.
func stranger(fs.FileInfo, string) bool { return false }

// inodeOf is 0: Lstat does not tell it.
func inodeOf(fs.FileInfo) uint64 { return 0 }
