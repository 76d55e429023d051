//go:build !linux

package main

// umaskOf is the umask of a process, which no other system tells.
func umaskOf(_ int, otherwise string) string { return otherwise }
