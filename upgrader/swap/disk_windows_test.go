package swap_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	win "golang.org/x/sys/windows"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// TestMain plays a program that runs until its standard input ends.
func TestMain(m *testing.M) {
	if os.Getenv("SWAP_TEST_PROCESS") != "" {
		_, _ = os.Stdout.WriteString("running\n")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	os.Exit(m.Run())
}

// running starts a copy of this program at path.
func running(t *testing.T, path string) (stop func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := swap.Real().Copy(self, path); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), "SWAP_TEST_PROCESS=1")
	in, err := cmd.StdinPipe()
	out, oerr := cmd.StdoutPipe()
	if err := errors.Join(err, oerr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error("the program that ran:", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func TestAProgramThatRunsIsReplaced(t *testing.T) {
	home := t.TempDir()
	live, fresh, backup := filepath.Join(home, "devopsAgent.exe"), filepath.Join(home, "fresh"), filepath.Join(home, "backup")
	stop := running(t, live)
	if err := os.WriteFile(fresh, []byte("MZ new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := swap.File(swap.Real(), live, fresh, backup); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(live); err != nil || string(got) != "MZ new" {
		t.Errorf("%.20q, %v", got, err)
	}
	if info, err := os.Stat(backup); err != nil || info.Size() < 1000 {
		t.Error("the backup:", info, err)
	}
	if err := swap.Sweep(home); err != nil {
		t.Errorf("a program that still runs is no error: %v", err)
	}
	if err := os.WriteFile(fresh, []byte("MZ newer"), 0o600); err != nil { // once more, while the first still runs
		t.Fatal(err)
	}
	if err := swap.File(swap.Real(), live, fresh, backup); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := swap.Sweep(home); err != nil {
		t.Error(err)
	}
	names, err := swap.Real().ReadDir(home)
	if err != nil || !slices.Equal(names, []string{"backup", "devopsAgent.exe"}) {
		t.Errorf("left: %q, %v", names, err)
	}
}

// What is kept of a program that runs can be forced to the disk, and thrown away, as a second name of it could not.
func TestTheCopyOfAProgramThatRuns(t *testing.T) {
	home := t.TempDir()
	live, kept := filepath.Join(home, "devopsAgent.exe"), filepath.Join(home, "kept", "devopsAgent.exe")
	running(t, live)
	if err := os.Mkdir(filepath.Dir(kept), 0o700); err != nil {
		t.Fatal(err)
	}
	d := swap.Real()
	for _, step := range []func() error{
		func() error { return d.Link(live, kept) },
		func() error { return d.Sync(kept) },
		func() error { return d.Remove(filepath.Dir(kept)) },
	} {
		if err := step(); err != nil {
			t.Error(err)
		}
	}
	if names, err := d.ReadDir(home); err != nil || !slices.Equal(names, []string{"devopsAgent.exe"}) {
		t.Errorf("left: %q, %v", names, err)
	}
}

func TestWhatIsBusyForAMomentIsTriedAgain(t *testing.T) {
	home := t.TempDir()
	path := filepath.Join(home, "agent.toml")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	name, err := win.UTF16PtrFromString(path)
	if err != nil {
		t.Fatal(err)
	}
	scanner, err := win.CreateFile(name, win.GENERIC_READ, 0, nil, win.OPEN_EXISTING, 0, 0) // shares nothing
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(200*time.Millisecond, func() { _ = win.CloseHandle(scanner) })
	defer timer.Stop()
	if err := swap.WriteFile(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Errorf("%q, %v", got, err)
	}
	if names, err := swap.Real().ReadDir(home); err != nil || len(names) != 1 {
		t.Errorf("left: %q, %v", names, err)
	}
}

func TestAdoptTakesOverTheAccessList(t *testing.T) {
	dir := t.TempDir()
	old, fresh := filepath.Join(dir, "old"), filepath.Join(dir, "fresh")
	if err := errors.Join(os.WriteFile(old, nil, 0o600), os.WriteFile(fresh, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	descriptor, err := win.SecurityDescriptorFromString("D:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;WD)")
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := descriptor.DACL()
	if err != nil {
		t.Fatal(err)
	}
	if err := win.SetNamedSecurityInfo(old, win.SE_FILE_OBJECT,
		win.DACL_SECURITY_INFORMATION|win.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, list, nil); err != nil {
		t.Fatal(err)
	}
	access := func(path string) string {
		descriptor, err := win.GetNamedSecurityInfo(path, win.SE_FILE_OBJECT, win.DACL_SECURITY_INFORMATION)
		if err != nil {
			t.Fatal(err)
		}
		return descriptor.String()
	}
	before := access(fresh)
	if err := swap.Real().Adopt(fresh, old); err != nil {
		t.Fatal(err)
	}
	if got, want := access(fresh), access(old); got != want || got == before {
		t.Errorf("%s; want %s; before %s", got, want, before)
	}
}

func TestADirectoryInUseStaysWhole(t *testing.T) {
	jdk, fresh := twoJDKs(t)
	f, err := os.Open(filepath.Join(jdk, "release")) // shared for reading and writing, not for deletion: as a JVM its files
	if err != nil {
		t.Fatal(err)
	}
	err = swap.Dir(swap.Real(), jdk, fresh, fresh)
	now, other := release(swap.Real(), jdk), release(swap.Real(), fresh)
	if cerr := f.Close(); cerr != nil {
		t.Error(cerr)
	}
	want := "old new"
	if err == nil { // Wine lets go of it
		want = "new old"
	}
	if got := strings.Join([]string{now, other}, " "); got != want {
		t.Errorf("%v: %s, want %s", err, got, want)
	}
}
