package proc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lookupUser reads /etc/passwd, and asks getent where that does not know the account: a static program has no
// name service switch, and build accounts often live in a directory service.
func lookupUser(name string) (*user.User, []string, error) {
	u, groups, err := localUser(name)
	var unknown user.UnknownUserError
	if !errors.As(err, &unknown) || name == "" || strings.HasPrefix(name, "-") {
		return u, groups, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	line, err := exec.CommandContext(ctx, "getent", "passwd", name).Output()
	if err != nil {
		return nil, nil, unknown
	}
	f := strings.Split(strings.TrimSpace(string(line)), ":")
	if len(f) < 7 || f[0] != name {
		return nil, nil, unknown
	}
	u = &user.User{Username: f[0], Uid: f[2], Gid: f[3], HomeDir: f[5]}
	ids, err := exec.CommandContext(ctx, "id", "-G", name).Output()
	if err != nil {
		return nil, nil, err
	}
	return u, strings.Fields(string(ids)), nil
}

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // unreadable in some containers: the ticks must do
	return strings.TrimSpace(string(id))
}

func earlier(started string) bool {
	_, boot, _ := strings.Cut(started, "@")
	now := bootID()
	return boot != "" && now != "" && boot != now
}

func lookup(pid int) (process, bool) {
	it, ok := readStat(pid)
	if ok {
		it.started = strconv.FormatUint(it.at, 10) + "@" + bootID()
	}
	return it, ok
}

func list() ([]process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	boot := "@" + bootID()
	var all []process
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if it, ok := readStat(pid); ok {
			it.started = strconv.FormatUint(it.at, 10) + boot
			all = append(all, it)
		}
	}
	return all, nil
}

func readStat(pid int) (process, bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	return parseStat(pid, raw)
}

// parseStat reads /proc/PID/stat: "pid (name) state ppid pgrp …", the start time in clock ticks since boot in
// field 22 (proc_pid_stat(5)). The name may hold anything, blanks and parentheses too.
func parseStat(pid int, raw []byte) (process, bool) {
	end := bytes.LastIndexByte(raw, ')')
	if end < 0 {
		return process{}, false
	}
	f := strings.Fields(string(raw[end+1:]))
	if len(f) < 20 {
		return process{}, false
	}
	ppid, err1 := strconv.Atoi(f[1])
	group, err2 := strconv.Atoi(f[2])
	at, err3 := strconv.ParseUint(f[19], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return process{}, false
	}
	return process{pid: pid, ppid: ppid, group: group, at: at, zombie: f[0] == "Z" || f[0] == "X"}, true
}

func environ(pid int) (map[string]string, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxEnv))
	if err != nil {
		return nil, err
	}
	return parseEnviron(raw), nil
}

func arguments(pid int) []string {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxEnv))
	if err != nil {
		return nil
	}
	return strings.Split(string(raw), "\x00")
}

// waitFor sleeps on a pidfd in the runtime's poller: no thread, no timer. Before Linux 5.3 it polls.
func waitFor(ctx context.Context, pid int, started string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return poll(ctx, pid, started)
	}
	if !Alive(pid, started) { // asked after the pidfd was open: from here on it cannot become somebody else's
		_ = unix.Close(fd)
		return nil
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return poll(ctx, pid, started)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer func() { _ = f.Close() }()
	if f.SetReadDeadline(time.Time{}) != nil { // not in the poller
		return poll(ctx, pid, started)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return poll(ctx, pid, started)
	}
	err = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 && err == nil
	})
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return poll(ctx, pid, started)
	}
	return nil
}
