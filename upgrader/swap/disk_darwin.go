package swap

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// exchange works on APFS; HFS+ and network file systems refuse it.
func exchange(a, b string) error {
	err := unix.RenamexNp(a, b, unix.RENAME_SWAP)
	switch err {
	case nil:
		return nil
	case unix.EINVAL, unix.ENOSYS, unix.ENOTSUP, unix.EXDEV:
		return fmt.Errorf("exchange %s and %s: %w: %w", a, b, ErrNoExchange, err)
	}
	return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
}
