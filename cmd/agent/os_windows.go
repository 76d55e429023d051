package main

// narrowUmask has nothing to do: Windows has no umask.
func narrowUmask() int { return -1 }

// surviveReaders has nothing to do: Windows has no SIGPIPE.
func surviveReaders() {}
