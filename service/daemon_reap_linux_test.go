package service

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// playReaper is a process that adopts an orphan while it waits for a child of its own. It prints what it found.
func playReaper() error {
	r := newReaper(true)
	defer r.close()
	own := exec.Command("/bin/sh", "-c", "/bin/sh -c 'exec sleep 0.2' >/dev/null & echo $!; read x; exit 7")
	in, err := own.StdinPipe()
	if err != nil {
		return err
	}
	out, err := own.StdoutPipe()
	if err != nil {
		return err
	}
	if err := own.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return err
	}
	orphan, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return err
	}
	if err := in.Close(); err != nil { // it ends, and leaves an orphan
		return err
	}
	for { // until its status waits to be taken by os/exec
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(own.Process.Pid) + "/stat")
		if err != nil {
			return err
		}
		r.reap(own.Process.Pid)
		if bytes.Contains(stat, []byte(") Z ")) {
			break
		}
	}
	var exit *exec.ExitError
	if err := own.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		return errors.New("our own child's status is lost")
	}
	for {
		<-r.childEnded()
		r.reap(0)
		if _, err := os.Stat("/proc/" + strconv.Itoa(orphan)); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
}

// TestOrphansAreReaped, and a child that os/exec waits for is not.
func TestOrphansAreReaped(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), part+"=reaper", "GORACE=atexit_sleep_ms=0")
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		t.Errorf("%v: %s", err, &out)
	}
}
