package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/devops-agent/devops-agent/service"
)

func offeredHere(t *testing.T) (Offered, func() string) {
	t.Helper()
	o := Offered{&service.Installation{Home: t.TempDir()}}
	return o, func() string {
		t.Helper()
		dir := o.NewName()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "devopsAgent"), []byte("program"), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
}

func there(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// Two use directories, as a CLI and the agent that takes one over; what a third one left goes when both have ended.
func TestOfferedFilesAreSweptWhenNobodyUsesThem(t *testing.T) {
	o, lay := offeredHere(t)
	left := lay()
	cli, err := o.Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	used := lay()
	agent, err := o.Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, release := range []func() error{cli, agent} {
		if err := o.Sweep(); err != nil {
			t.Fatal(err)
		}
		if !there(t, left) || !there(t, used) {
			t.Fatal("swept while somebody uses such a directory")
		}
		if err := release(); err != nil {
			t.Fatal(err)
		}
	}
	other := o.Inst.Path("tmp", "devopsAgent")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.Sweep(); err != nil {
		t.Fatal(err)
	}
	if there(t, left) || there(t, used) || !there(t, other) {
		t.Errorf("after a sweep: %v %v %v, want only the last", there(t, left), there(t, used), there(t, other))
	}
	if _, err := o.Use(t.Context()); err != nil {
		t.Errorf("use after a sweep: %v", err)
	}
}

func TestSweepOfAHomeWithoutRuntime(t *testing.T) {
	o, lay := offeredHere(t)
	dir := lay()
	if err := o.Sweep(); err != nil {
		t.Fatal(err)
	}
	if !there(t, dir) {
		t.Error("swept without a lock")
	}
}

func TestOnlyOfferedFilesAreRemoved(t *testing.T) {
	o, lay := offeredHere(t)
	for _, path := range []string{
		o.Inst.Home, o.Inst.Path("tmp"), o.Inst.Path("offered-x"), o.Inst.Path("tmp", "incoming"), o.Inst.Path("tmp", "a", "offered-x"),
		o.Inst.Path("tmp", "offered-x", "..") + "/..",
	} {
		if o.Has(path) {
			t.Errorf("%s is no directory of offered files", path)
		}
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := o.remove(path); err != nil || !there(t, path) {
			t.Errorf("%s was removed: %v", path, err)
		}
	}
	dir := lay()
	if err := o.remove(dir); err != nil || there(t, dir) {
		t.Errorf("%s was not removed: %v", dir, err)
	}
}
