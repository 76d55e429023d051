//go:build !windows

package service

// playsProgram is about services of Windows.
func playsProgram() bool { return false }
