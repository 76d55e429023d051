//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// TestAccessOverTLS: a controller with a certificate of its own, an agent that pins it and builds, also after the controller was
// killed; who may do what; and the audit log says it all, without a secret.
func TestAccessOverTLS(t *testing.T) {
	t.Parallel()
	p := programs(t)
	c := lab.NewController(t, p, "--tls", "self")
	if !strings.HasPrefix(c.URL, "https://") {
		t.Fatalf("it serves %s", c.URL)
	}
	run := func(verb ...string) string {
		t.Helper()
		out, code := c.Run("", verb...)
		if code != 0 {
			t.Fatalf("%s: exit code %d", verb, code)
		}
		return strings.TrimSpace(out)
	}
	pin, token := run("certificate", "--fingerprint"), run("enroll-token", "--uses", "1", "--expires", "1h", "--labels", "pinned", "--note", "the only one")
	secrets := []string{token, "hush-in-a-script", "hush-in-a-variable"}

	// An agent enrols by the pin, and by no other.
	home := lab.NewHome(t, p, lab.HomeOptions{Worker: p.Worker, NoJar: true, JDK: "-", Gateway: c.URL, Mode: "auto"})
	home.Remove(".agent.properties")
	before := entries(t, home.Path("."))
	enroll := func(pin ...string) (string, error) {
		cmd := exec.Command(home.Path("devopsAgent"), append([]string{"enroll", "--gateway", c.URL}, pin...)...)
		cmd.Stdin = strings.NewReader(token)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := enroll(); err == nil || !strings.Contains(out, "certificate") {
		t.Errorf("without a pin: %v\n%s", err, out)
	}
	if out, err := enroll("--pin", wire.PinOf(nil).String()); err == nil || !strings.Contains(out, "is not the pinned one") || !strings.Contains(out, pin) {
		t.Errorf("with a wrong pin: %v\n%s", err, out)
	}
	if after := entries(t, home.Path(".")); after != before {
		t.Errorf("a refused enrolment left something: %s, before it %s", after, before)
	}
	if out, err := enroll("--pin", pin); err != nil {
		t.Fatalf("enroll: %v\n%s", err, out)
	}
	if cert, err := os.ReadFile(home.Path(".cert")); err != nil || string(cert) != run("certificate", "--pem")+"\n" {
		t.Errorf(".cert: %v\n%s", err, cert)
	}
	home.Start()
	if !lab.Eventually(60*time.Second, func() bool { return strings.Contains(home.Log(), "Startup accepted") }) {
		t.Fatalf("the agent did not get in touch: %s", home.Log())
	}
	build := func(name string) {
		t.Helper()
		id := c.Submit("name: " + name + "\nlabels: [pinned]\nvariables:\n  V: {value: hush-in-a-variable, sensitive: true}\nsteps:\n  - script: |\n      : hush-in-a-script\n      echo it-is-$((40+2))\n")
		if seen := c.Over(2*time.Minute, id); seen.State != "succeeded" || !strings.Contains(run("logs", id), "it-is-42") {
			t.Errorf("%s is %s", name, seen.State)
		}
	}
	build("first")

	// What was acknowledged outlives a kill: the token is used up.
	c.Kill()
	c.Start()
	var list []struct {
		State, Note string
		Used        int
	}
	if err := json.Unmarshal([]byte(run("enroll-token", "list", "--json")), &list); err != nil || len(list) != 1 || list[0].State != "used-up" || list[0].Used != 1 || list[0].Note != "the only one" {
		t.Errorf("enrolment tokens: %+v %v", list, err)
	}
	second := lab.NewHome(t, p, lab.HomeOptions{Worker: p.Worker, NoJar: true, JDK: "-", Gateway: c.URL, Mode: "auto"})
	second.Remove(".agent.properties")
	again := exec.Command(second.Path("devopsAgent"), "enroll", "--gateway", c.URL, "--pin", pin)
	again.Stdin = strings.NewReader(token)
	if out, err := again.CombinedOutput(); err == nil || !strings.Contains(string(out), "used up") {
		t.Errorf("a second machine with a token for one: %v\n%s", err, out)
	}
	build("second")

	// A reader looks and changes nothing; a revoked one does neither.
	reader := run("token", "add", "wall", "--expires", "1h")
	secrets = append(secrets, reader)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(reader), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, verb := range [][]string{{"agents"}, {"builds"}, {"logs", "1"}} {
		if _, code := c.Run("", append([]string{"--token-file", file}, verb...)...); code != 0 {
			t.Errorf("%s by a reader: exit code %d", verb, code)
		}
	}
	for _, verb := range [][]string{{"run", "--detach", "--", "true"}, {"cancel", "1"}, {"enroll-token"}, {"token", "add", "more"}, {"agents", "delete", "x"}} {
		if _, code := c.Run("", append([]string{"--token-file", file}, verb...)...); code != 1 {
			t.Errorf("%s by a reader: exit code %d", verb, code)
		}
	}
	run("token", "revoke", "wall")
	if _, code := c.Run("", "--token-file", file, "agents"); code != 1 {
		t.Errorf("a revoked token opens: exit code %d", code)
	}

	audit := run("audit", "--json")
	var said []struct{ Who, Verb, Outcome string }
	if err := json.Unmarshal([]byte(audit), &said); err != nil {
		t.Fatal(err)
	}
	count := make(map[string]int)
	for _, e := range said {
		count[e.Who+" "+e.Verb+" "+e.Outcome]++
	}
	for what, want := range map[string]int{"operator.token enroll-tokens.create ok": 1, "operator.token builds.create ok": 2, "operator.token tokens.create ok": 1,
		"operator.token tokens.delete ok": 1, "wall builds.create refused": 1, "wall builds.cancel refused": 1, "wall enroll-tokens.create refused": 1,
		"wall tokens.create refused": 1, "wall agents.delete refused": 1} {
		if count[what] != want {
			t.Errorf("%s: %d times in the audit log, want %d: %s", what, count[what], want, audit)
		}
	}
	operator, err := os.ReadFile(filepath.Join(c.Data, "operator.token"))
	if err != nil {
		t.Fatal(err)
	}
	secrets = append(secrets, strings.TrimSpace(string(operator)))
	for _, secret := range secrets {
		if strings.Contains(audit, secret) || strings.Contains(c.Log(), secret) {
			t.Errorf("%s is in the audit log or in the controller's log", secret)
		}
	}
	for _, name := range []string{"controller.db", "controller.db-wal"} {
		data, err := os.ReadFile(filepath.Join(c.Data, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{token, reader, strings.TrimSpace(string(operator))} {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("the text of a token is in %s", name)
			}
		}
	}
}

// entries are the names in a directory.
func entries(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}
