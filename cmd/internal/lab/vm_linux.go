package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// VM is a machine made by lab/vm: a kernel of its own, and a disk at /srv of which every write and flush is recorded. It goes
// when the test ends, or the process of the test does.
type VM struct {
	Name string

	t           T
	script, dir string
}

// VMOptions shape a machine.
type VMOptions struct {
	Name    string // part of the name, for people who look at this machine; letters and digits
	Disk    string // ext4 or xfs
	Payload string // a directory that is /payload inside; its file boot is run at every boot
}

// NewVM makes a machine and boots it. It needs root.
func NewVM(t T, o VMOptions) *VM {
	t.Helper()
	root, err := ModuleRoot()
	if err != nil {
		t.Fatalf("make a machine: %v", err)
	}
	v := &VM{t: t, script: filepath.Join(root, "lab", "vm"), Name: fmt.Sprintf("%.12s-%s-%d", o.Name, randomHex(2), os.Getpid())}
	t.Cleanup(func() { v.must("rm") })
	args := []string{"--disk", o.Disk, "--owner", strconv.Itoa(os.Getpid())}
	if o.Payload != "" {
		args = append(args, "--payload", o.Payload)
	}
	v.must("up", args...)
	v.dir = strings.TrimSpace(v.must("dir"))
	return v
}

func (v *VM) must(verb string, args ...string) string {
	v.t.Helper()
	out, err := v.call(verb, args...)
	if err != nil {
		v.t.Fatalf("lab/vm %s %s: %v", verb, v.Name, err)
	}
	return out
}

func (v *VM) call(verb string, args ...string) (string, error) {
	cmd := exec.Command(v.script, append([]string{verb, v.Name}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 2 * time.Second // QEMU outlives the call
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%w: %s%s", err, stdout.String(), stderr.String())
	}
	return stdout.String(), err
}

// Exec runs a line of shell inside as root and returns what it printed.
func (v *VM) Exec(command string) (string, error) { return v.call("exec", command) }

// Console is what the machine has said since it was booted last.
func (v *VM) Console() string {
	data, _ := os.ReadFile(filepath.Join(v.dir, "console"))
	return string(data)
}

// Cut cuts the power: what was flushed to the disk is on it afterwards, and of the rest any part, as seed has it (0: all).
func (v *VM) Cut(seed uint64) Cut {
	v.t.Helper()
	v.must("kill")
	disk := filepath.Join(v.dir, "disk")
	err := os.Rename(disk+".before", disk)
	var cut Cut
	if err == nil {
		cut, err = LosePower(disk, filepath.Join(v.dir, "writes"), seed)
	}
	if err != nil {
		v.t.Fatalf("cut the power of %s: %v", v.Name, err)
	}
	return cut
}

// Check checks the file system of a machine that does not run, as its next boot would find it.
func (v *VM) Check() error {
	_, err := v.call("fsck")
	return err
}

// Start boots it again, from what is on its disk.
func (v *VM) Start() { v.t.Helper(); v.must("start") }
