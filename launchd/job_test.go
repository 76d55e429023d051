package launchd

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"howett.net/plist"
)

var update = flag.Bool("update", false, "write the golden files")

func daemon() Job {
	return Job{
		Label:   "org.devops-agent.agent",
		Program: []string{"/usr/local/libexec/devops-agent/upgrader", "start", "--home", "/usr/local/var/devops-agent", "--vendor", "/usr/local/libexec/devops-agent"},
		User:    "_devops", Directory: "/usr/local/var/devops-agent", StayDown: "/usr/local/var/devops-agent/.removed",
		Environment: map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "en_US.UTF-8"},
		Throttle:    time.Second, ExitTimeout: 10*time.Minute + 30*time.Second,
		Type: Interactive, MaxFiles: 65536, Umask: 0o077, Stderr: "/usr/local/var/devops-agent/logs/launchd.log",
	}
}

func agent() Job {
	home := `/Users/ci/R&D <agents> "1"/代理`
	return Job{
		Label: "devops_agent_abcdefgh", Program: []string{home + "/upgrader", "start", "--home", home},
		Directory: home, StayDown: home + "/.removed", Throttle: time.Second, ExitTimeout: 1500 * time.Millisecond,
		Type: Interactive, Session: SessionAqua, Stderr: home + "/logs/launchd.log",
	}
}

func TestPlistIsGolden(t *testing.T) {
	for file, job := range map[string]Job{"daemon.plist": daemon(), "agent.plist": agent()} {
		text, err := job.Plist()
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", file)
		if *update {
			if err := os.WriteFile(golden, text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(text, want) {
			t.Errorf("%s: got\n%s", file, text)
		}
	}
}

func TestPlistIsReadBack(t *testing.T) {
	minute := daemon()
	minute.ExitTimeout = time.Minute
	bare := Job{Label: "a", Program: []string{"/bin/a"}, Throttle: time.Second, ExitTimeout: time.Second}
	for _, job := range []Job{minute, bare} {
		text, err := job.Plist()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseJob(text); err != nil || !reflect.DeepEqual(got, job) {
			t.Errorf("%v: got %+v, want %+v", err, got, job)
		}
	}
	text, err := agent().Plist()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseJob(text); err != nil || got.ExitTimeout != 2*time.Second || got.Program[3] != agent().Program[3] || got.Session != SessionAqua {
		t.Errorf("%v: %+v", err, got)
	}
}

// TestKeepAliveIsAboutTheFileAlone: launchd starts the job again when any condition holds, so one about exit codes or
// crashes beside the file would bring an agent back that ended with 88.
func TestKeepAliveIsAboutTheFileAlone(t *testing.T) {
	text, err := daemon().Plist()
	if err != nil {
		t.Fatal(err)
	}
	var keys map[string]any
	if _, err := plist.Unmarshal(text, &keys); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"PathState": map[string]any{"/usr/local/var/devops-agent/.removed": false}}
	if !reflect.DeepEqual(keys["KeepAlive"], want) {
		t.Errorf("KeepAlive %v, want %v", keys["KeepAlive"], want)
	}
	for key, want := range map[string]any{
		"RunAtLoad": true, "AbandonProcessGroup": true, "ThrottleInterval": uint64(1), "ExitTimeOut": uint64(630), "Umask": uint64(63),
		"SoftResourceLimits": map[string]any{"NumberOfFiles": uint64(65536)},
	} {
		if !reflect.DeepEqual(keys[key], want) {
			t.Errorf("%s is %v (%T), want %v", key, keys[key], keys[key], want)
		}
	}
}

// TestPlistutilReadsIt asks another reader. It prints ERROR and still exits with 0.
func TestPlistutilReadsIt(t *testing.T) {
	tool, err := exec.LookPath("plistutil")
	if err != nil {
		t.Skip("needs plistutil (\"make tools\" installs it on Debian)")
	}
	for _, file := range []string{"daemon.plist", "agent.plist"} {
		binary := filepath.Join(t.TempDir(), "out")
		out, err := exec.Command(tool, "-i", filepath.Join("testdata", file), "-f", "bin", "-o", binary).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("ERROR")) {
			t.Errorf("%s: %v\n%s", file, err, out)
			continue
		}
		text, err := os.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		job, err := ParseJob(text)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := job.Plist(); err != nil || !bytes.Equal(again, want) {
			t.Errorf("%s came back as\n%s\n%v", file, again, err)
		}
	}
}

func TestPlistRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Job){
		"no label":            func(j *Job) { j.Label = "" },
		"label with a slash":  func(j *Job) { j.Label = "a/b" },
		"label with a blank":  func(j *Job) { j.Label = "a b" },
		"hidden file":         func(j *Job) { j.Label = ".agent" },
		"label like a switch": func(j *Job) { j.Label = "-k" },
		"long label":          func(j *Job) { j.Label = strings.Repeat("a", 129) },
		"no program":          func(j *Job) { j.Program = nil },
		"empty program":       func(j *Job) { j.Program[0] = "" },
		"relative program":    func(j *Job) { j.Program[0] = "upgrader" },
		"relative directory":  func(j *Job) { j.Directory = "home" },
		"relative marker":     func(j *Job) { j.StayDown = ".removed" },
		"relative stderr":     func(j *Job) { j.Stderr = "log" },
		"newline":             func(j *Job) { j.Program[1] = "start\npid = 1" },
		"NUL":                 func(j *Job) { j.Environment = map[string]string{"A": "a\x00"} },
		"not UTF-8":           func(j *Job) { j.Directory = "/home/\xff" },
		"variable":            func(j *Job) { j.Environment = map[string]string{"A=B": "c"} },
		"no throttle":         func(j *Job) { j.Throttle = 0 },
		"short throttle":      func(j *Job) { j.Throttle = 100 * time.Millisecond },
		"no time to end":      func(j *Job) { j.ExitTimeout = 0 },
		"for ever":            func(j *Job) { j.ExitTimeout = 1<<63 - 1 },
		"user of a session":   func(j *Job) { j.Session = SessionAqua },
	} {
		job := daemon()
		spoil(&job)
		if text, err := job.Plist(); err == nil {
			t.Errorf("%s: rendered\n%s", name, text)
		}
	}
}

func TestParseJobOfOthers(t *testing.T) {
	for _, text := range []string{"", "{", "<plist>", "<plist><array/></plist>", "bplist00\x00\x00", `{ LimitLoadToSessionType = (Aqua, Background); }`} {
		if job, err := ParseJob([]byte(text)); err == nil && (job.Label != "" || job.Session != "" || job.StayDown != "") {
			t.Errorf("%q: %+v", text, job)
		}
	}
	job, err := ParseJob([]byte(`{ Label = a; KeepAlive = { PathState = { "/x" = 0; }; SuccessfulExit = 0; }; LimitLoadToSessionType = (Background); Umask = "077"; }`))
	if err != nil || job.StayDown != "" || job.Session != SessionBackground || job.Umask != 0 {
		t.Errorf("%v %+v", err, job)
	}
}

func FuzzParseJob(f *testing.F) {
	for _, file := range []string{"daemon.plist", "agent.plist"} {
		text, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 1<<16 {
			return
		}
		job, err := ParseJob(text)
		if err != nil {
			return
		}
		if out, err := job.Plist(); err == nil { // what we would write says what we read
			if again, err := ParseJob(out); err != nil || !reflect.DeepEqual(normal(again), normal(job)) {
				t.Errorf("%v: %+v became %+v", err, job, again)
			}
		}
	})
}

// normal makes empty and missing maps one.
func normal(j Job) Job {
	if len(j.Environment) == 0 {
		j.Environment = nil
	}
	if j.MaxFiles < 0 {
		j.MaxFiles = 0
	}
	return j
}
