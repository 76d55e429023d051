package proc

import (
	"context"
	"errors"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
)

// zombieState is SZOMB of sys/proc.h.
const zombieState = 5

func lookupUser(name string) (*user.User, []string, error) { return localUser(name) }

func lookup(pid int) (process, bool) {
	info, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil || int(info.Proc.P_pid) != pid {
		return process{}, false
	}
	return fromKinfo(info), true
}

func list() ([]process, error) {
	infos, err := unix.SysctlKinfoProcSlice("kern.proc.all")
	if err != nil {
		return nil, err
	}
	all := make([]process, 0, len(infos))
	for i := range infos {
		all = append(all, fromKinfo(&infos[i]))
	}
	return all, nil
}

// earlier allows for a minute by which the clock may have been set since.
func earlier(started string) bool {
	at, err := strconv.ParseInt(started, 10, 64)
	boot, berr := unix.SysctlTimeval("kern.boottime")
	return err == nil && berr == nil && at/1_000_000+60 < boot.Sec
}

func fromKinfo(info *unix.KinfoProc) process {
	t := info.Proc.P_starttime
	at := uint64(t.Sec)*1_000_000 + uint64(t.Usec)
	return process{
		pid: int(info.Proc.P_pid), ppid: int(info.Eproc.Ppid), group: int(info.Eproc.Pgid),
		at: at, started: strconv.FormatUint(at, 10), zombie: info.Proc.P_stat == zombieState,
	}
}

func environ(pid int) (map[string]string, error) {
	raw, err := unix.SysctlRaw("kern.procargs2", pid)
	if err != nil {
		return nil, err
	}
	_, env, ok := parseProcArgs(raw)
	if !ok {
		return nil, errors.New("unexpected answer of kern.procargs2")
	}
	return env, nil
}

func arguments(pid int) []string {
	raw, err := unix.SysctlRaw("kern.procargs2", pid)
	if err != nil {
		return nil
	}
	args, _, _ := parseProcArgs(raw)
	return args
}

func waitFor(ctx context.Context, pid int, started string) error { return poll(ctx, pid, started) }
