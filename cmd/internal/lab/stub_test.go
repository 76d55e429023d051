//go:build unix

package lab

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func testHome(t *testing.T) *Home {
	t.Helper()
	p := Programs{stubs: t.TempDir()}
	if err := writeStubs(p.stubs); err != nil {
		t.Fatal(err)
	}
	return NewHome(t, p, HomeOptions{Gateway: "127.0.0.1:1", Name: "with blank", Set: map[string]string{"devops.language": "en_US", "x.y": "z"}, Drop: []string{"landun.env"}})
}

func TestHomeHoldsItsProperties(t *testing.T) {
	h := testHome(t)
	got := h.ReadProperties()
	if got["devops.language"] != "en_US" || got["x.y"] != "z" || got["landun.gateway"] != "127.0.0.1:1" || got["devops.agent.secret.key"] != h.Secret {
		t.Errorf("properties: %v", got)
	}
	if _, ok := got["landun.env"]; ok {
		t.Error("a dropped property is there")
	}
}

func TestStubJavaAnswersProbes(t *testing.T) {
	h := testHome(t)
	java := func(args ...string) string {
		cmd := exec.Command(h.Path("jdk", "bin", "java"), args...)
		cmd.Env = childEnv(h.Lab, h.User)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("java %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if got := java("-version"); got != JDKLines {
		t.Errorf("-version: %q", got)
	}
	if got := java("-Xmx256m", "-cp", h.Path("worker-agent.jar"), "com.tencent.devops.agent.AgentVersionKt"); got != WorkerVersion+"\n" {
		t.Errorf("worker version: %q", got)
	}
}

func TestStubWorkerWritesDownWhatItSeesAndWaitsAtItsGate(t *testing.T) {
	h := testHome(t)
	b := NewBuild()
	open := h.Gate(b)
	failure := h.Path("error.log")
	if err := os.WriteFile(failure, []byte("killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Work(&b, "gate; echo bad >\"$error\"; code=3")
	a := h.StartProgram(h.Path("jdk", "bin", "java"), h.Dir, []string{"-Ddevops.agent.error.file=" + failure,
		"-DAGENT_LOG_PREFIX=" + b.Key() + "_agent", "-Djava.io.tmpdir=" + h.Dir, "-jar", "x.jar", "e30="})
	if !h.WaitBegan(5*time.Second, b) {
		t.Fatalf("the stub did not begin: %s", a.Output())
	}
	if !a.Alive() {
		t.Fatal("it did not wait")
	}
	open()
	if code, err := a.Wait(5 * time.Second); code != 3 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	run := h.Run(b)
	args := run.Args()
	text, _ := os.ReadFile(failure)
	if run.File("prefilled") != "killed" || strings.TrimSpace(string(text)) != "bad" || len(args) == 0 || args[len(args)-1] != "e30=" ||
		strings.TrimSpace(run.File("cwd")) != h.Dir || run.Env()["LAB_DIR"] != h.Lab || run.Starts() != 1 || run.Ended().IsZero() {
		t.Errorf("record: prefilled %q, error file %q, args %q, cwd %q", run.File("prefilled"), text, args, run.File("cwd"))
	}
}

func TestStubUpgraderWritesDownItsArguments(t *testing.T) {
	h := testHome(t)
	a := h.StartProgram(h.Path("tmp", "upgrader"), h.Dir, []string{"-action=uninstall"})
	if _, err := a.Wait(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	calls := h.UpgraderCalls()
	if len(calls) != 1 || len(calls[0].Args) != 1 || calls[0].Args[0] != "-action=uninstall" || calls[0].Dir != h.Dir {
		t.Errorf("calls: %+v", calls)
	}
}

func TestSecretIsFoundWhereItMustNotBe(t *testing.T) {
	h := testHome(t)
	if found := h.FindSecret(h.Secret); len(found) != 0 {
		t.Errorf("a fresh home: %v", found)
	}
	h.Write("logs/x.log", "key="+h.Secret+"\n")
	if found := h.FindSecret(h.Secret); len(found) != 1 {
		t.Errorf("a leak was not found: %v", found)
	}
}
