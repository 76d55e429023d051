package systemd

import "io/fs"

// File is one that a package ships.
type File struct {
	Path string // absolute
	Mode fs.FileMode
	Text string
}
