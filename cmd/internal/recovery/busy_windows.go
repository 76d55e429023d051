package recovery

import (
	"errors"

	win "golang.org/x/sys/windows"
)

func busy(err error) bool { return errors.Is(err, win.ERROR_SHARING_VIOLATION) }
