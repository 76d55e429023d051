//go:build !darwin

package launchd

import "errors"

// StatVolume asks the file system of a directory about itself. Only macOS answers.
func StatVolume(string) (Volume, error) {
	return Volume{}, errors.ErrUnsupported
}
