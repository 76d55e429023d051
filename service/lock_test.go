package service

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// part is the variable by which the test binary is told to be another process.
const part = "DEVOPS_SERVICE_TEST_PART"

func TestMain(m *testing.M) {
	if name := os.Getenv(part); name != "" {
		if err := play(name); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if playsProgram() {
		return
	}
	goleak.VerifyTestMain(m)
}

// play is the other process. One that holds something says so and keeps it until its standard input ends.
func play(name string) error {
	if name == "home" {
		home, err := HomeOf(os.Args[0])
		fmt.Println(home)
		return err
	}
	if name == "here" {
		home, err := HomeHere()
		fmt.Println(home)
		return err
	}
	switch name {
	case kept:
		return playKept()
	case "reaper":
		return playReaper()
	}
	inst, err := Open(os.Args[1])
	if err != nil {
		return err
	}
	if name == "total" {
		if err := os.MkdirAll(inst.Path("runtime"), 0o700); err != nil {
			return err
		}
		_, err = inst.HoldTotal(context.Background(), time.Minute)
	} else {
		_, err = inst.Hold(context.Background(), Role(name))
	}
	if err != nil {
		return err
	}
	fmt.Println("held")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// other is a second process that holds a role or the total-lock.
type other struct {
	*exec.Cmd
	stdin io.Closer
}

func startOther(t *testing.T, name, home string) *other {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, home)
	cmd.Env = append(os.Environ(), part+"="+name, "GORACE=atexit_sleep_ms=0")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if strings.TrimSpace(line) != "held" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	return &other{cmd, stdin}
}

// end lets it go in peace.
func (o *other) end(t *testing.T) {
	t.Helper()
	_ = o.stdin.Close()
	if err := o.Wait(); err != nil {
		t.Errorf("the other process: %v", err)
	}
}

func open(t *testing.T) *Installation {
	t.Helper()
	inst, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return inst
}

// TestRoleIsHeldOnce: protocol §2.4, between processes.
func TestRoleIsHeldOnce(t *testing.T) {
	inst := open(t)
	holder := startOther(t, "agent", inst.Home)
	if _, err := inst.Hold(t.Context(), RoleAgent); !errors.Is(err, ErrRunning) {
		t.Errorf("second holder: %v, want ErrRunning", err)
	} else if !strings.Contains(err.Error(), inst.Home) {
		t.Errorf("error does not say where: %v", err)
	}
	if got := pid(t, inst, RoleAgent); got != strconv.Itoa(holder.Process.Pid) {
		t.Errorf("agent.pid is %q, want %d: the second must not touch it", got, holder.Process.Pid)
	}
	daemon, err := inst.Hold(t.Context(), RoleDaemon)
	if err != nil {
		t.Fatalf("another role: %v", err)
	}
	defer func() { _ = daemon.Release() }()
	holder.end(t)
	lock, err := inst.Hold(t.Context(), RoleAgent)
	if err != nil {
		t.Fatalf("after its end: %v", err)
	}
	if got := pid(t, inst, RoleAgent); got != strconv.Itoa(os.Getpid()) {
		t.Errorf("agent.pid is %q, want %d", got, os.Getpid())
	}
	if _, err := inst.Hold(t.Context(), RoleAgent); !errors.Is(err, ErrRunning) {
		t.Errorf("second holder in one process: %v", err)
	}
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
	again, err := inst.Hold(t.Context(), RoleAgent)
	if err != nil {
		t.Fatalf("after Release: %v", err)
	}
	_ = again.Release()
	if got := pid(t, inst, RoleAgent); got == "" {
		t.Error("the pid file is to stay")
	}
}

// TestKilledHolderIsNone: the kernel gives the lock back.
func TestKilledHolderIsNone(t *testing.T) {
	inst := open(t)
	for range 3 {
		holder := startOther(t, "agent", inst.Home)
		if err := holder.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = holder.Wait()
		lock, err := inst.Hold(t.Context(), RoleAgent)
		if err != nil {
			t.Fatalf("after kill -9: %v", err)
		}
		if err := lock.Release(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPidFile: decimal, without newline, shorter than what was there before, and nobody else's.
func TestPidFile(t *testing.T) {
	inst := open(t)
	if err := os.Mkdir(inst.Path("runtime"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(inst.Path("runtime", "upgrade.pid"), []byte("123456789012345\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, role := range []Role{RoleAgent, RoleDaemon, RoleUpgrade, RoleInstaller} {
		lock, err := inst.Hold(t.Context(), role)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = lock.Release() }()
		if got := pid(t, inst, role); got != strconv.Itoa(os.Getpid()) {
			t.Errorf("%s.pid is %q, want %d and nothing else", role, got, os.Getpid())
		}
	}
	if runtime.GOOS == "windows" {
		return
	}
	entries, err := os.ReadDir(inst.Path("runtime"))
	if err != nil || len(entries) != 9 {
		t.Fatalf("%d files, %v: want four locks, four pids and total-lock.lock", len(entries), err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

func pid(t *testing.T, inst *Installation, role Role) string {
	t.Helper()
	data, err := os.ReadFile(inst.Path("runtime", string(role)+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestTotalLockIsWaitedFor: a start waits for an upgrader, and takes its role when that is done.
func TestTotalLockIsWaitedFor(t *testing.T) {
	inst := open(t)
	upgrader := startOther(t, "total", inst.Home)
	held := make(chan error, 1)
	go func() {
		lock, err := inst.Hold(t.Context(), RoleAgent)
		for errors.Is(err, ErrRunning) { // the probe below had it for a moment
			lock, err = inst.Hold(t.Context(), RoleAgent)
		}
		if err == nil {
			err = lock.Release()
		}
		held <- err
	}()
	// The role is taken first, so that a second start is told at once; then the pid file waits.
	probe := newLock(inst.Path("runtime", "agent.lock"))
	until(t, func() bool {
		got, err := probe.TryLock()
		if got {
			_ = probe.Unlock()
		}
		return !got && err == nil
	})
	if _, err := inst.Hold(t.Context(), RoleAgent); !errors.Is(err, ErrRunning) {
		t.Errorf("second start meanwhile: %v", err)
	}
	select {
	case err := <-held:
		t.Fatalf("did not wait for total-lock: %v", err)
	default:
	}
	if _, err := os.Stat(inst.Path("runtime", "agent.pid")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pid file written without total-lock: %v", err)
	}
	upgrader.end(t)
	if err := <-held; err != nil {
		t.Errorf("after the upgrader: %v", err)
	}
}

// TestTotalLockIsNotWaitedForForEver (weakness W-36).
func TestTotalLockIsNotWaitedForForEver(t *testing.T) {
	inst := open(t)
	upgrader := startOther(t, "total", inst.Home)
	began := time.Now()
	_, err := inst.hold(t.Context(), RoleAgent, 200*time.Millisecond)
	var busy *BusyError
	if !errors.As(err, &busy) || busy.Waited != 200*time.Millisecond || busy.Path != inst.Path("runtime", "total-lock.lock") {
		t.Fatalf("error %v, want a BusyError", err)
	}
	if took := time.Since(began); took < 200*time.Millisecond || took > 20*time.Second {
		t.Errorf("waited %v", took)
	}
	if errors.Is(err, ErrRunning) || !strings.Contains(busy.Hint(), "upgrade.pid") {
		t.Errorf("error %v, hint %q", err, busy.Hint())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := inst.Hold(ctx, RoleAgent); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := inst.Hold(ctx, RoleAgent); errors.As(err, &busy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's own deadline: %v", err)
	}
	upgrader.end(t)
	lock, err := inst.hold(t.Context(), RoleAgent, 10*time.Second)
	if err != nil {
		t.Fatalf("the role was not given back: %v", err)
	}
	_ = lock.Release()
}

// TestLockDirectoryThatCannotBe: a file in its place.
func TestLockDirectoryThatCannotBe(t *testing.T) {
	inst := open(t)
	if err := os.WriteFile(inst.Path("runtime"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Hold(t.Context(), RoleAgent); err == nil || errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), inst.Path("runtime")) {
		t.Errorf("a file named runtime: %v", err)
	}
	inst = open(t)
	if err := os.MkdirAll(inst.Path("runtime", "agent.lock"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Hold(t.Context(), RoleAgent); err == nil || errors.Is(err, ErrRunning) {
		t.Errorf("a directory named agent.lock: %v", err)
	}
	inst = open(t)
	if err := os.MkdirAll(inst.Path("runtime", "agent.pid"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := inst.Hold(t.Context(), RoleAgent); err == nil {
		t.Error("a directory named agent.pid")
	}
	probe := newLock(inst.Path("runtime", "agent.lock"))
	if got, err := probe.TryLock(); !got || err != nil {
		t.Errorf("the role was not given back: %v, %v", got, err)
	}
	_ = probe.Unlock()
}

func TestNetworkFSErrorSaysWhatToDo(t *testing.T) {
	err := &NetworkFSError{Dir: "/home/ci/runtime", Kind: "nfs"}
	if !strings.Contains(err.Error(), "/home/ci/runtime") || !strings.Contains(err.Error(), "nfs") || !strings.Contains(err.Hint(), "local disk") {
		t.Errorf("%v, %s", err, err.Hint())
	}
	if kind, remote := networkFS(t.TempDir()); remote {
		t.Errorf("the directory for temporary files is on %s", kind)
	}
	if _, remote := networkFS(filepath.Join(t.TempDir(), "none")); remote {
		t.Error("what cannot be asked counts as local")
	}
}

// until waits for a condition that no event announces.
func until(t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("did not come to pass within 20 s")
		}
	}
}
