//go:build !linux

package service

import "os"

// reaper does nothing: other systems give orphans to their first process.
type reaper struct{}

func newReaper(bool) *reaper                   { return &reaper{} }
func (r *reaper) childEnded() <-chan os.Signal { return nil }
func (r *reaper) close()                       {}
func (r *reaper) reap(int)                     {}
