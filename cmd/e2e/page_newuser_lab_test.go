//go:build lab && linux

package e2e

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestPageLeadsANewUserToAGreenBuild knows nothing but what "make build" leaves, what the controller says at its start and what the
// page says: the token is where the one says, the command is typed as the other shows it, and what the form holds is submitted.
func TestPageLeadsANewUserToAGreenBuild(t *testing.T) {
	t.Parallel()
	bin, empty := t.TempDir(), t.TempDir()
	if out, err := exec.Command("make", "-C", "../..", "build", "BIN="+bin).CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	begin := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	controller := exec.CommandContext(ctx, "./devopsController", "serve", "--listen", "127.0.0.1:0", "--data", empty)
	controller.Dir = bin
	controller.Cancel = func() error { return controller.Process.Signal(os.Interrupt) }
	said, err := controller.StdoutPipe()
	if err == nil {
		err = controller.Start()
	}
	if err != nil {
		stop()
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(); _ = controller.Wait() })
	terminal := bufio.NewReader(said)
	// next finds what an expression names in the next line.
	next := func(expression string) string {
		line, err := terminal.ReadString('\n')
		found := regexp.MustCompile(expression).FindStringSubmatch(line)
		if found == nil {
			t.Fatalf("the controller says %q (%v), not %s", line, err, expression)
		}
		return found[1]
	}
	url, file := next(`serves (http://\S+)\n`), next(`token to sign in with is in (.+)\n`)
	token, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}

	b := newBrowser(t, url, look{})
	b.signIn(strings.TrimSpace(string(token)))
	b.says(`after "make build": bin`)
	b.says("only the controller's own machine reaches it")
	b.until(`!!document.querySelector(".empty .command code")`)
	command := value[string](b, `document.querySelector(".empty .command code").innerText`)
	out, err := os.Create(filepath.Join(t.TempDir(), "terminal"))
	if err != nil {
		t.Fatal(err)
	}
	agent := exec.Command("sh", "-c", command)
	agent.Dir, agent.Stdout, agent.Stderr = bin, out, out
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop := exec.Command("./devopsAgent", "stop", "--now")
		stop.Dir = bin
		_ = stop.Run()
		_ = agent.Process.Kill()
		_ = agent.Wait()
		_ = out.Close()
		if t.Failed() {
			text, _ := os.ReadFile(out.Name())
			t.Logf("in the agent's terminal:\n%s", text)
		}
	})
	b.says("online")
	b.press("New build")
	b.until(`!!document.querySelector("main textarea")`)
	b.press("Submit")
	b.says("succeeded")
	b.says("hello from ")
	t.Logf("from the start of the controller to a green build: %v", time.Since(begin).Round(time.Millisecond))
	b.clean()
}
