//go:build linux || darwin

package swap

import (
	"errors"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// adoptAttributes takes over the extended attributes that are about the file and not about its content. One that the
// file system or the system's policy refuses is left out: a program without it runs as any new file does here.
func adoptAttributes(path, like string) error {
	list, err := attribute(func(b []byte) (int, error) { return unix.Llistxattr(like, b) })
	if err != nil {
		return attributeError("list the attributes of", like, err)
	}
	for name := range strings.SplitSeq(string(list), "\x00") {
		if !carried(name) {
			continue
		}
		value, err := attribute(func(b []byte) (int, error) { return unix.Lgetxattr(like, name, b) })
		if err == nil {
			err = unix.Lsetxattr(path, name, value, 0)
		}
		if err := attributeError("set attribute "+name+" of", path, err); err != nil {
			return err
		}
	}
	return nil
}

// attributeError keeps what is not a refusal: a disk that is full or broken.
func attributeError(op, path string, err error) error {
	for _, refusal := range []error{
		unix.ENOTSUP, unix.EOPNOTSUPP, unix.EPERM, unix.EACCES, unix.EINVAL, unix.E2BIG, unix.ERANGE, unix.ENOSYS, noAttribute,
	} {
		if errors.Is(err, refusal) {
			return nil
		}
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

// attribute calls get with enough room for its answer.
func attribute(get func([]byte) (int, error)) ([]byte, error) {
	for {
		size, err := get(nil)
		if err != nil || size == 0 {
			return nil, err
		}
		b := make([]byte, size)
		size, err = get(b)
		if errors.Is(err, unix.ERANGE) {
			continue // it has grown meanwhile
		}
		if err != nil {
			return nil, err
		}
		return b[:size], nil
	}
}
