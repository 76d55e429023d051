// Package proc: one child and everything it spawned: start, wait, kill.
package proc
