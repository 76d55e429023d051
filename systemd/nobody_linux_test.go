package systemd

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// asNobody runs a command as another account when we are root: a user's manager refuses root's service. The directories become
// that account's.
func asNobody(t *testing.T, cmd *exec.Cmd, dirs ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	const nobody = 65534
	for _, d := range dirs {
		if err := os.Chown(d, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}
