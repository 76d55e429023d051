//go:build !linux

package main

// lockOwner knows nothing: this system does not list who has a file locked.
func lockOwner(string) int { return 0 }

// directories knows nothing: the directory of a foreign process cannot be read without cgo.
func directories() map[int]string { return nil }
