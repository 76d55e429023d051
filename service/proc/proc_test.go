package proc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain lets the test binary play the children: what PROC_TEST_ROLE says.
func TestMain(m *testing.M) {
	if role := os.Getenv("PROC_TEST_ROLE"); role != "" {
		os.Exit(play(role))
	}
	goleak.VerifyTestMain(m)
}

func play(role string) int {
	role, rest, _ := strings.Cut(role, ",")
	switch role {
	case "exit":
		code, _ := strconv.Atoi(rest)
		return code
	case "echo":
		_, _ = io.Copy(os.Stdout, os.Stdin)
		return 0
	case "touch":
		if err := os.WriteFile(rest, nil, 0o666); err != nil {
			return 1
		}
		return 0
	case "sleep":
		fmt.Println("ready", os.Getpid())
	case "deaf":
		signal.Ignore(os.Interrupt, terminateSignal())
		fmt.Println("ready", os.Getpid())
	case "parent": // starts a child that plays the rest, and sleeps
		_, _ = spawn(rest)
	case "both": // starts one child that asks to be spared and one that does not, and sleeps
		_, _ = spawn("sleep")
		_ = os.Setenv("PROC_TEST_SPARE", "yes")
		_, _ = spawn("sleep")
	case "leave": // starts a child that plays the rest, and ends
		_, _ = spawn(rest)
		return 0
	}
	<-time.NewTimer(2 * time.Minute).C // nobody should outlive a broken test
	return 9
}

func spawn(role string) (*exec.Cmd, error) {
	own := strings.HasPrefix(role, "own,")
	role = strings.TrimPrefix(role, "own,")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PROC_TEST_ROLE="+role)
	cmd.Stdout = os.Stdout
	if own {
		ownGroup(cmd)
	}
	return cmd, cmd.Start()
}

func child(role string, more ...string) Command {
	return Command{Path: os.Args[0], Env: append(os.Environ(), append(more, "PROC_TEST_ROLE="+role)...)}
}

// announced starts a child and returns the pids that n processes of its tree announced.
func announced(t *testing.T, n int, c Command) (*Process, []int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout = w
	p, err := Start(c)
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill(0); p.Wait() })
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { _ = r.Close() })
	var pids []int
	lines := bufio.NewScanner(r)
	for len(pids) < n && lines.Scan() {
		if _, pid, ok := strings.Cut(lines.Text(), "ready "); ok {
			id, _ := strconv.Atoi(pid)
			pids = append(pids, id)
		}
	}
	if len(pids) < n {
		t.Fatalf("only %d of %d processes announced themselves: %v", len(pids), n, lines.Err())
	}
	return p, pids
}

func TestKillSparesWhatAsksForIt(t *testing.T) {
	p, pids := announced(t, 2, child("both", "PROC_TEST_SPARE=no"))
	spare := func(env map[string]string) bool { return env["PROC_TEST_SPARE"] == "yes" }
	if err := p.KillSparing(0, spare); err != nil {
		t.Fatal(err)
	}
	gone(t, p.Pid())
	kept := 0
	for _, pid := range pids {
		if running(pid) {
			kept++
		}
	}
	if kept != 1 {
		t.Errorf("%d of two children were kept, want the one that asked", kept)
	}
	if err := p.Kill(0); err != nil { // without mercy now
		t.Error(err)
	}
	for _, pid := range pids {
		gone(t, pid)
	}
}

func running(pid int) bool {
	it, ok := lookup(pid)
	return ok && !it.zombie
}

func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); running(pid); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d still runs", pid)
		}
	}
}

func TestExitIsReported(t *testing.T) {
	for _, code := range []int{0, 3, 255} {
		p, err := Start(child("exit," + strconv.Itoa(code)))
		if err != nil {
			t.Fatal(err)
		}
		exit := p.Wait()
		if exit.Code != code || exit.Err != nil || exit.Signal != "" || exit.Success() != (code == 0) {
			t.Errorf("exit %d was reported as %+v", code, exit)
		}
		if again := p.Wait(); again != exit {
			t.Errorf("the second Wait says %+v, the first %+v", again, exit)
		}
		if Alive(p.Pid(), p.Started()) {
			t.Error("alive after Wait")
		}
	}
}

func TestInputAndOutputGoThrough(t *testing.T) {
	c := child("echo")
	var out strings.Builder
	c.Stdin, c.Stdout = strings.NewReader("a line\n"), &out
	p, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	if exit := p.Wait(); !exit.Success() || exit.Detached || out.String() != "a line\n" {
		t.Errorf("%+v, output %q", exit, out.String())
	}
}

func TestAMissingProgramIsNamed(t *testing.T) {
	_, err := Start(Command{Path: filepath.Join(t.TempDir(), "nothing")})
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("%v", err)
	}
}

func TestAliveTellsProcessesApart(t *testing.T) {
	p, _ := announced(t, 1, child("sleep"))
	if !Alive(p.Pid(), p.Started()) {
		t.Error("a running process is not alive")
	}
	if Alive(p.Pid(), "1") || Alive(p.Pid(), "") || Alive(1<<30, p.Started()) {
		t.Error("another start time or pid is alive too")
	}
	if started, ok := Identify(p.Pid()); !ok || started != p.Started() {
		t.Errorf("identified as %q, want %q", started, p.Started())
	}
	if err := p.Kill(0); err != nil {
		t.Error(err)
	}
	gone(t, p.Pid())
	if _, ok := Identify(p.Pid()); ok {
		t.Error("a dead process was identified")
	}
}

func TestKillEndsTheWholeTree(t *testing.T) {
	for _, tt := range []struct {
		name, role string
		grace      time.Duration
	}{
		{"at once", "parent,parent,sleep", 0},
		{"asked", "parent,parent,sleep", 10 * time.Second},
		{"deaf child", "parent,deaf", 300 * time.Millisecond},
		{"deaf child in a group of its own", "parent,own,deaf", 300 * time.Millisecond},
		{"child without its parent", "leave,deaf", 300 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, pids := announced(t, 1, child(tt.role))
			if strings.HasPrefix(tt.role, "leave") {
				p.Wait()
			}
			begin := time.Now()
			if err := p.Kill(tt.grace); err != nil {
				t.Fatal(err)
			}
			if running(pids[0]) || running(p.Pid()) {
				t.Error("something of it still runs")
			}
			p.Wait()
			if spent := time.Since(begin); spent > tt.grace+3*time.Second || spent > 8*time.Second {
				t.Errorf("it took %v", spent)
			}
			if err := p.Kill(time.Second); err != nil {
				t.Errorf("killing the dead: %v", err)
			}
		})
	}
}

func TestWaitDoesNotHangOnAnInheritedPipe(t *testing.T) {
	c := child("leave,sleep")
	r, w := io.Pipe()
	c.Stdout = w
	pid := make(chan int, 1)
	var reader sync.WaitGroup
	reader.Go(func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			if _, text, ok := strings.Cut(lines.Text(), "ready "); ok {
				id, _ := strconv.Atoi(text)
				pid <- id
			}
		}
	})
	p, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	exit := p.Wait()
	_ = w.Close()
	reader.Wait()
	if exit.Code != 0 || exit.Err != nil || !exit.Detached {
		t.Errorf("%+v", exit)
	}
	grandchild := <-pid
	if !running(grandchild) {
		t.Error("the grandchild did not outlive its parent: the test shows nothing")
	}
	if err := p.Kill(0); err != nil {
		t.Error(err)
	}
	gone(t, grandchild)
}

func TestAdoptedProcessIsWaitedForAndKilled(t *testing.T) {
	p, pids := announced(t, 1, child("parent,deaf"))
	q, err := Adopt(p.Pid(), p.Started())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("long enough"))
	defer cancel()
	if err := WaitFor(ctx, q.Pid(), q.Started()); err == nil || err.Error() != "long enough" {
		t.Errorf("waiting for a running process: %v", err)
	}
	ended := make(chan Exit)
	go func() { ended <- q.Wait() }()
	if err := q.Kill(100 * time.Millisecond); err != nil {
		t.Error(err)
	}
	if exit := <-ended; exit.Code != -1 || exit.Err != nil {
		t.Errorf("%+v", exit)
	}
	if running(pids[0]) && runtime.GOOS != "windows" {
		t.Error("the grandchild still runs")
	}
	p.Wait()
	if err := WaitFor(t.Context(), p.Pid(), p.Started()); err != nil {
		t.Error(err)
	}
	if _, err := Adopt(p.Pid(), p.Started()); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("adopting the dead: %v", err)
	}
}

func TestKillByEnvFindsWhatTheTreeDoesNotShow(t *testing.T) {
	mark := fmt.Sprintf("Mark-%d-%d", os.Getpid(), time.Now().UnixNano())
	want := map[string]string{"PROC_TEST_BUILD": strings.ToUpper(mark)}
	spare := func(env map[string]string) bool { return strings.EqualFold(env["PROC_TEST_SPARE"], "true") }

	orphaned, orphan := announced(t, 1, child("leave,own,sleep", "PROC_TEST_BUILD="+mark))
	_, spared := announced(t, 1, child("sleep", "PROC_TEST_BUILD="+mark, "PROC_TEST_SPARE=True"))
	_, except := announced(t, 1, child("sleep", "PROC_TEST_BUILD="+mark))
	_, other := announced(t, 1, child("sleep", "PROC_TEST_BUILD=another"))
	orphaned.Wait()
	killed, err := KillByEnv(want, spare, except[0])
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(killed, orphan) {
		t.Errorf("killed %v, want %v", killed, orphan)
	}
	gone(t, orphan[0])
	for name, pid := range map[string]int{"spared": spared[0], "excepted": except[0], "another build": other[0]} {
		if !running(pid) {
			t.Errorf("%s was killed", name)
		}
	}
	if killed, _ := KillByEnv(nil, nil); killed != nil {
		t.Errorf("no condition killed %v", killed)
	}
}

func TestAncestorsBeginWithTheParent(t *testing.T) {
	if os.Getppid() == 0 {
		t.Skip("this process has no parent: Wine runs it for a program that is none of Windows")
	}
	if got := Ancestors(); len(got) == 0 || got[0] != os.Getppid() {
		t.Errorf("%v, want %d first", got, os.Getppid())
	}
}

func TestParsers(t *testing.T) {
	env := parseEnviron([]byte("A=1\x00B=x=y\x00A=2\x00=C:=odd\x00nothing\x00E=\x00"))
	if len(env) != 3 || env["A"] != "1" || env["B"] != "x=y" || env["E"] != "" {
		t.Errorf("environ: %v", env)
	}
	raw := append([]byte{2, 0, 0, 0}, "/bin/x\x00\x00\x00x\x00-arg=1\x00HOME=/h\x00EMPTY=\x00\x00junk=1\x00"...)
	if _, env, ok := parseProcArgs(raw); !ok || len(env) != 2 || env["HOME"] != "/h" {
		t.Errorf("procargs: %v %v", env, ok)
	}
	if env := parseUTF16Environ([]uint16{'=', 'C', ':', 0, 'A', '=', 0xe9, 0, 0, 'B', '=', '1', 0}); len(env) != 1 || env["A"] != "é" {
		t.Errorf("utf-16: %v", env)
	}
	if !matches(map[string]string{"Path": "X"}, map[string]string{"PATH": "x"}, true) ||
		matches(map[string]string{"Path": "X"}, map[string]string{"PATH": "x"}, false) {
		t.Error("names of variables: any case on Windows only")
	}
}

func FuzzEnvironments(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00/bin/x\x00\x00x\x00A=1\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for name := range parseEnviron(raw) {
			if name == "" || strings.ContainsAny(name, "=\x00") {
				t.Errorf("name %q", name)
			}
		}
		if _, env, ok := parseProcArgs(raw); !ok && env != nil {
			t.Error("an environment of nothing")
		}
		wide := make([]uint16, len(raw)/2)
		for i := range wide {
			wide[i] = uint16(raw[2*i]) | uint16(raw[2*i+1])<<8
		}
		parseUTF16Environ(wide)
	})
}
