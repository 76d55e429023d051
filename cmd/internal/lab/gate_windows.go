package lab

import (
	"errors"
	"os"
)

// openGate needs named pipes in the file system. The stubs are shell scripts anyway.
func openGate(string) (*os.File, error) {
	return nil, errors.New("gates are for unix only")
}
