package host

import "golang.org/x/sys/unix"

func osVersion() string {
	version, err := unix.Sysctl("kern.osproductversion")
	if err != nil {
		return "macOS"
	}
	return "macOS " + version
}
