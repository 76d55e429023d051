package swap

import "strings"

// carried tells whether the extended attribute called name goes over to a file that replaces the one that has it.
// What is about the content of the old one (hashes, signatures, forks), or is the file system's own, must not.
func carried(name string) bool {
	switch name {
	case "security.ima", "security.evm", "com.apple.decmpfs", "com.apple.ResourceFork":
		return false
	case "system.posix_acl_access":
		return true
	}
	switch space, _, _ := strings.Cut(name, "."); space {
	case "security", "user":
		return true
	case "com", "org":
		return !strings.HasPrefix(name, "com.apple.cs.")
	}
	return false
}
