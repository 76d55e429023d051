//go:build linux

package e2e

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// seenRun is a run as the controller shows it.
type seenRun struct {
	ID    string `json:"id"`
	State string `json:"state"`
	Jobs  []struct {
		Job   string `json:"job"`
		Build string `json:"build"`
		Name  string `json:"name"`
		State string `json:"state"`
	} `json:"jobs"`
}

func findRun(t *testing.T, c *lab.Controller, id string) (r seenRun) {
	t.Helper()
	out, code := c.Run("", "runs", "--json", id)
	if code != 0 || json.Unmarshal([]byte(out), &r) != nil {
		t.Fatalf("runs %s: %d %s", id, code, out)
	}
	return r
}

// runOver waits for the end of a run.
func runOver(t *testing.T, c *lab.Controller, id string) (r seenRun) {
	t.Helper()
	if !lab.Eventually(2*time.Minute, func() bool {
		r = findRun(t, c, id)
		return r.State != "queued" && r.State != "running"
	}) {
		t.Fatalf("run is %+v\n%s", r, c.Log())
	}
	return r
}

// TestJobsOfARun: jobs with needs, a matrix and outputs through the real programs; a failure, what is skipped, and what
// runs nevertheless; a kill -9 of the controller in the middle.
func TestJobsOfARun(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, _ := enrolled(t, c)
	out, code := c.Run(`name: chain
jobs:
  build:
    steps:
      - id: make
        script: |
          echo "::set-output name=count::forty-two"
  test:
    needs: build
    matrix: {go: ["1.25", 1.30]}
    steps:
      - script: echo "got ${{ jobs.build.steps.make.outputs.count }} with ${{ matrix.go }} in $LEVEL"
        env: {LEVEL: "level-${{ matrix.go }}"}
  tell:
    needs: [test]
    steps: [{script: "echo it is ${{ jobs.test.result }}"}]
`, "run", "-")
	if code != 0 {
		t.Fatalf("exit code %d: %s\n%s", code, out, home.Log())
	}
	for _, want := range []string{"test (1.25) | got forty-two with 1.25 in level-1.25\n", "test (1.30) | got forty-two with 1.30 in level-1.30\n",
		"tell        | it is succeeded\n", "── run #1 succeeded [4 succeeded, "} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}

	stop := home.LabPath("stop")
	out, code = c.Run(`name: fails
jobs:
  first:
    steps: [{script: "while [ ! -e `+stop+` ]; do sleep 0.1; done; exit 3"}]
  second:
    needs: first
    steps: [{script: echo never}]
  third:
    needs: second
    always: true
    steps: [{script: "echo second was ${{ jobs.second.result }}"}]
`, "run", "--detach", "-")
	if code != 0 {
		t.Fatal("not submitted")
	}
	id := strings.TrimSpace(out)
	if !lab.Eventually(time.Minute, func() bool { return findRun(t, c, id).Jobs[0].State == "running" }) {
		t.Fatalf("%+v\n%s", findRun(t, c, id), home.Log())
	}
	c.Kill()
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Start()
	r := runOver(t, c, id)
	if r.State != "failed" || r.Jobs[0].State != "failed" || r.Jobs[1].State != "skipped" || r.Jobs[2].State != "succeeded" {
		t.Errorf("%+v", r)
	}
	if out, _ := c.Run("", "logs", r.Jobs[2].Build); !strings.Contains(out, "second was skipped") {
		t.Errorf("log of the last:\n%s", out)
	}
	out, code = c.Run("", "runs", "rerun", id)
	if code != 0 {
		t.Fatal("not run again")
	}
	if again := runOver(t, c, strings.TrimSpace(out)); again.State != "failed" || again.ID == id {
		t.Errorf("%+v", again)
	}
	if _, code := c.Run("jobs:\n  a:\n    needs: a\n    steps: [{script: x}]\n", "run", "-"); code != 1 {
		t.Errorf("a circle ended with code %d", code)
	}
}

// TestSecretsOfABuild: a secret reaches the script, and is nowhere in clear: not in the log, in what the CLI shows, in
// the data directory of the controller.
func TestSecretsOfABuild(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, _ := enrolled(t, c)
	if _, code := c.Run("correct-horse-battery\n", "secret", "set", "DEPLOY_KEY"); code != 0 {
		t.Fatal("not set")
	}
	copied := home.LabPath("copied")
	out, code := c.Run(`secrets: [DEPLOY_KEY]
steps:
  - script: |
      printf %s "$DEPLOY_KEY" >`+copied+`
      echo "it is $DEPLOY_KEY"
      setEnv LEAK "x${DEPLOY_KEY}y"
`, "run", "-")
	if code != 0 || !strings.Contains(out, "it is ******") {
		t.Fatalf("exit code %d: %s\n%s", code, out, home.Log())
	}
	if got, err := os.ReadFile(copied); err != nil || string(got) != "correct-horse-battery" {
		t.Errorf("the script got %q %v", got, err)
	}
	list, _ := c.Run("", "secret", "list")
	shown, _ := c.Run("", "builds", "--json", "1")
	if !strings.Contains(list, "DEPLOY_KEY") {
		t.Errorf("list:\n%s", list)
	}
	c.Kill()
	all := out + list + shown + c.Log() + home.Log()
	for _, name := range []string{"controller.db", "controller.db-wal"} {
		data, _ := os.ReadFile(filepath.Join(c.Data, name)) // there is no -wal after a checkpoint
		all += string(data)
	}
	if strings.Contains(all, "correct-horse-battery") {
		t.Error("the secret is in clear text somewhere")
	}
	c.Start()
	if _, code := c.Run("", "secret", "remove", "DEPLOY_KEY"); code != 0 {
		t.Error("not removed")
	}
	if _, code := c.Run("secrets: [DEPLOY_KEY]\nsteps: [{script: x}]\n", "run", "-"); code != 1 {
		t.Errorf("a build with a secret that is gone: exit code %d", code)
	}
}

// TestAWebhookStartsADefinition: what a signed call brings reaches the scripts as values, whatever is in it.
func TestAWebhookStartsADefinition(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, _ := enrolled(t, c)
	if _, code := c.Run("the key", "secret", "set", "HOOK"); code != 0 {
		t.Fatal("no secret")
	}
	out, touched := home.LabPath("out"), home.LabPath("touched")
	if _, code := c.Run("name: push\nbadge: public\nwebhook: {secret: HOOK, variables: {REF: ref}}\nvariables: {OTHER: filled}\nsteps:\n  - script: |\n      printf %s \"${REF}\" >"+out+"\n      echo ${REF}\n",
		"define", "-"); code != 0 {
		t.Fatal("not defined")
	}
	value := "it's $(touch " + touched + ") `touch " + touched + "` '; touch " + touched + "; ' ${OTHER} ${{ OTHER }}"
	body, err := json.Marshal(map[string]string{"ref": value})
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, []byte("the key"))
	_, _ = mac.Write(body)
	call := func() (run string) {
		req, err := http.NewRequestWithContext(t.Context(), "POST", c.URL+"/hooks/push", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
		req.Header.Set("X-Delivery-Id", "1")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var said struct{ Run string }
		if err := json.NewDecoder(resp.Body).Decode(&said); err != nil || said.Run == "" {
			t.Fatalf("%s: %v", resp.Status, err)
		}
		return said.Run
	}
	id := call()
	if again := call(); again != id {
		t.Errorf("the same delivery started %s and %s", id, again)
	}
	if r := runOver(t, c, id); r.State != "succeeded" {
		log, _ := c.Run("", "logs", r.Jobs[0].Build)
		t.Errorf("%+v\n%s", r, log)
	}
	if got, err := os.ReadFile(out); err != nil || string(got) != value {
		t.Errorf("the script got %q, want %q: %v", got, value, err)
	}
	if _, err := os.Stat(touched); err == nil {
		t.Error("a value was run as code")
	}
	if said, code := c.Run("", "trigger", "push", "--var", "REF=by hand"); code != 0 || !strings.Contains(said, "by hand") {
		t.Errorf("trigger: %d %s", code, said)
	}
	if list, _ := c.Run("", "definitions"); !strings.Contains(list, "#2 succeeded") {
		t.Errorf("definitions:\n%s", list)
	}
	if _, code := c.Run("", "undefine", "push"); code != 0 {
		t.Error("not forgotten")
	}
}
