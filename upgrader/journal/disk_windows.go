package journal

// ownerOf is nobody: a new file inherits the access list of its directory.
func ownerOf(string) *ids { return nil }
