// Package proc: one child and everything it spawned: start, wait, kill.
//
// A child gets a process group of its own on Unix and a Job Object on Windows. Neither ends with us: a build
// outlives its agent. A process is remembered as its pid together with the time it was started, because pids come
// round again; the pair can be written down and taken up by another program ([Adopt], [Alive], [WaitFor]).
package proc
