// Package rhythm: when an agent calls next: its intervals, longer and jittered pauses after errors, questions that the server may hold.
package rhythm
