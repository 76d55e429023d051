//go:build !linux

package service

// monotonicMicroseconds matters to systemd only.
func monotonicMicroseconds() int64 { return 0 }
