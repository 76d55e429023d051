package main

import "golang.org/x/sys/unix"

// replaceFD makes descriptor to mean what from means, also for the programs that come after us.
func replaceFD(from, to int) error { return unix.Dup2(from, to) }
