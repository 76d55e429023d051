// Package powercut: a disk in memory that forgets, in every way a real one may, what was not forced to it.
package powercut
