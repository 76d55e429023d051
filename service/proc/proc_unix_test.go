//go:build unix

package proc

import (
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

func terminateSignal() os.Signal { return syscall.SIGTERM }

func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func TestASignalIsNamed(t *testing.T) {
	p, _ := announced(t, 1, child("sleep"))
	if err := syscall.Kill(p.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit := p.Wait(); exit.Code != -1 || exit.Signal != "killed" || exit.String() != "signal: killed" {
		t.Errorf("%+v", exit)
	}
}

func TestUmaskIsTheChildsAlone(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	var children sync.WaitGroup
	for i := range 8 {
		children.Go(func() {
			mask, want := 0o022, os.FileMode(0o644)
			if i%2 == 1 {
				mask, want = -1, 0o600
			}
			file := filepath.Join(dir, strconv.Itoa(i))
			c := child("touch," + file)
			c.Umask = mask
			p, err := Start(c)
			if err != nil {
				t.Error(err)
				return
			}
			if exit := p.Wait(); !exit.Success() {
				t.Error(exit)
				return
			}
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != want {
				t.Errorf("umask %o made %v, want %v (%v)", mask, info.Mode(), want, err)
			}
		})
	}
	children.Wait()
	if mask := syscall.Umask(0o077); mask != 0o077 {
		t.Errorf("our own umask became %o", mask)
	}
}

func TestLookupAccountFindsOurselves(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	a, err := LookupAccount(me.Username)
	if err != nil || int(a.UID) != os.Getuid() || a.Home != me.HomeDir || len(a.Groups) == 0 {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := LookupAccount("no-such-account-here"); err == nil {
		t.Error("an account that does not exist was found")
	}
	c := child("exit,0")
	c.Account = a
	if p, err := Start(c); err != nil || !p.Wait().Success() {
		t.Errorf("as ourselves: %v", err)
	}
}

func TestAnotherAccountOwnsItsFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		c := child("exit,0")
		c.Account = &Account{Name: "other", UID: uint32(os.Geteuid()) + 1}
		if _, err := Start(c); err == nil {
			t.Error("the account was changed without being root")
		}
		return
	}
	a, err := LookupAccount("nobody")
	if err != nil {
		t.Fatal(err)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && len(d) > 1; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "out")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	p, err := Start(Command{Path: sh, Args: []string{"-c", "id -u; id -G"}, Dir: "/", Stdout: out, Account: a})
	if err != nil {
		t.Fatal(err)
	}
	p.Wait()
	got, _ := os.ReadFile(file)
	uid := strconv.Itoa(int(a.UID))
	if want := uid + "\n" + strconv.Itoa(int(a.GID)) + "\n"; string(got) != want {
		t.Errorf("it ran as %q, want %q", got, want)
	}
}

func TestEarlier(t *testing.T) {
	me, ok := Identify(os.Getpid())
	if !ok || Earlier(me) {
		t.Errorf("%q is of this boot", me)
	}
	if Earlier("") || Earlier("17") && runtime.GOOS == "linux" {
		t.Error("what cannot be told is not earlier")
	}
	if runtime.GOOS == "linux" && !Earlier("17@another-boot") || runtime.GOOS == "darwin" && !Earlier("1000000") {
		t.Error("a process of another boot")
	}
}
