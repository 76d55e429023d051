//go:build !linux

package lab

import "errors"

// Memory needs /proc.
func Memory(int) (rss, peak int64, err error) {
	return 0, 0, errors.New("memory of a process: needs /proc")
}

// Marked needs /proc: elsewhere nothing is found.
func Marked(string) []int { return nil }

// KillMarked needs /proc: elsewhere nothing is found.
func KillMarked(string) []int { return nil }

// CommandLines needs /proc: elsewhere nothing is found.
func CommandLines(string) []int { return nil }

// Running needs /proc: elsewhere nothing runs.
func Running(int) bool { return false }
