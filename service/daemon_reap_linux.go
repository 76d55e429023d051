package service

import (
	"os"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper takes the exit statuses of processes that lost their parent, an agent that was killed, so that they do not stay
// as zombies where nobody else does that, as in a container. It leaves our own child to os/exec.
type reaper struct{ ended chan os.Signal }

// newReaper becomes the parent of what the agent leaves behind (PR_SET_CHILD_SUBREAPER); wanted or not.
func newReaper(wanted bool) *reaper {
	r := &reaper{}
	if wanted && unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == nil {
		r.ended = make(chan os.Signal, 1)
		signal.Notify(r.ended, unix.SIGCHLD)
	}
	return r
}

// childEnded says that there may be something to reap; it never does when that is not wanted.
func (r *reaper) childEnded() <-chan os.Signal { return r.ended }

func (r *reaper) close() {
	if r.ended != nil {
		signal.Stop(r.ended)
	}
}

// reap takes all statuses that there are but that of spare.
func (r *reaper) reap(spare int) {
	if r.ended == nil {
		return
	}
	for {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
			return
		}
		pid := pidOf(&info)
		if pid == 0 || pid == spare { // spare is about to be waited for; what is behind it comes after that
			return
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
			return
		}
	}
}

// pidOf reads si_pid, which follows three ints, aligned as a pointer is (sigaction(2)).
func pidOf(info *unix.Siginfo) int {
	const word = unsafe.Sizeof(uintptr(0))
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), (12+word-1)/word*word)))
}
