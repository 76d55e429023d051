package service

// NetworkFS says whether home is on a file system where locks cannot be trusted, and which: "nfs", "smb" (Hold refuses it).
func (i *Installation) NetworkFS() (kind string, remote bool) { return networkFS(i.Home) }
