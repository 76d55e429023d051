package service

import "golang.org/x/sys/unix"

// monotonicMicroseconds is CLOCK_MONOTONIC, which systemd compares with its own.
func monotonicMicroseconds() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0
	}
	return now.Nano() / 1000
}
