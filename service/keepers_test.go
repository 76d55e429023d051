package service

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestPaceOfFaults(t *testing.T) {
	now := time.Now()
	p := newPace(now)
	for i, want := range []string{"100ms", "200ms", "400ms", "800ms", "1.6s", "3.2s", "6.4s", "12.8s", "25.6s", "30s", "30s"} {
		if got := p.fault(now, false); got.String() != want {
			t.Errorf("fault %d: %v, want %s", i+1, got, want)
		}
	}
	for range 1000 {
		if got := p.fault(now, false); got != mostPause {
			t.Fatalf("after many: %v", got)
		}
	}
	if got := p.fault(now, true); got != readyPause {
		t.Errorf("of an agent that had been ready: %v", got)
	}
	p.blow(now, true)
	if got := p.fault(now, false); got != firstPause {
		t.Errorf("after a blow at a ready one: %v", got)
	}
	p.forget(now)
	if p.streak != 0 {
		t.Errorf("after forget: %+v", p)
	}
}

// TestPaceOfBlows: a hundred kills in a row cost nothing; what goes on after that is one start a second.
func TestPaceOfBlows(t *testing.T) {
	now := time.Now()
	p := newPace(now)
	for i := range freeBlows {
		if got := p.blow(now, false); got != 0 {
			t.Fatalf("blow %d: %v", i+1, got)
		}
	}
	for range 10 {
		if got := p.blow(now, false); got != blowPause {
			t.Errorf("afterwards: %v", got)
		}
	}
	if got := p.blow(now.Add(2*time.Second), false); got != 0 {
		t.Errorf("two seconds later: %v", got)
	}
	if p.blows > freeBlows {
		t.Errorf("%+v", p)
	}
}

func TestBest(t *testing.T) {
	portable := &Installation{Home: "/home/ci/agent"}
	for name, tc := range map[string]struct {
		inst *Installation
		m    machine
		want Keeper
	}{
		"root with systemd":             {portable, machine{goos: "linux", root: true, systemd: true, user: true}, KeeperSystemd},
		"a user with a manager":         {portable, machine{goos: "linux", systemd: true, user: true}, KeeperSystemdUser},
		"a user without":                {portable, machine{goos: "linux", systemd: true}, KeeperDaemon},
		"root in a container":           {portable, machine{goos: "linux", root: true}, KeeperDaemon},
		"a user in a container":         {portable, machine{goos: "linux"}, KeeperDaemon},
		"package, asked by a user":      {&Installation{Home: Packaged("linux").Home}, machine{goos: "linux", systemd: true, user: true}, KeeperSystemd},
		"instance, asked by a user":     {&Installation{Home: Instance("a").Home}, machine{goos: "linux", systemd: true, user: true}, KeeperSystemd},
		"below an instance":             {&Installation{Home: Instance("a").Home + "/b"}, machine{goos: "linux", systemd: true, user: true}, KeeperSystemdUser},
		"root of a Mac":                 {portable, machine{goos: "darwin", root: true}, KeeperLaunchd},
		"a user of a Mac":               {portable, machine{goos: "darwin"}, KeeperLaunchAgent},
		"package on a Mac":              {&Installation{Home: Packaged("darwin").Home}, machine{goos: "darwin"}, KeeperLaunchd},
		"Windows":                       {portable, machine{goos: "windows"}, KeeperSCM},
		"a system that is none of ours": {portable, machine{goos: "freebsd"}, KeeperDaemon},
	} {
		if got := best(tc.inst, tc.m); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// TestOf: what was registered is found again, by our record, the original's word or the place.
func TestOf(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the words of .install_type are Linux's here")
	}
	inst := open(t)
	if s, err := Of(inst); !errors.Is(err, ErrNoKeeper) || s != nil {
		t.Errorf("of nothing: %v, %v", s, err)
	}
	for word, want := range map[string]Keeper{"SERVICE": KeeperSystemd, "USER\n": KeeperSystemdUser, "DIRECT": KeeperDaemon} {
		if err := os.WriteFile(inst.Path(typeFile), []byte(word), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Of(inst)
		if err != nil || s.Keeper() != want {
			t.Errorf("%s: %v, %v", word, s, err)
		}
	}
	for _, word := range []string{"", "TASK", "../../etc"} {
		if err := os.WriteFile(inst.Path(typeFile), []byte(word), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Of(inst); !errors.Is(err, ErrNoKeeper) {
			t.Errorf("%q: %v", word, err)
		}
	}
	for _, k := range []Keeper{KeeperSystemd, KeeperSystemdUser, KeeperDaemon} {
		if err := writeKeeper(inst, keeperRecord{Keeper: k, Name: "x", At: time.Now()}, Setup{}); err != nil {
			t.Fatal(err)
		}
		if s, err := Of(inst); err != nil || s.Keeper() != k {
			t.Errorf("%s: %v, %v", k, s, err)
		}
	}
	if s, err := Of(&Installation{Home: Instance("a").Home}); err != nil || s.Keeper() != KeeperSystemd {
		t.Errorf("a package's: %v, %v", s, err)
	}
	if err := os.WriteFile(inst.Path(keeperFile), []byte(`{"keeper":"cron"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Of(inst); !errors.Is(err, ErrNoKeeper) {
		t.Errorf("a keeper that we do not know: %v", err)
	}
	if err := os.WriteFile(inst.Path(keeperFile), []byte(`{`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Of(inst); err == nil || errors.Is(err, ErrNoKeeper) || !strings.Contains(err.Error(), keeperFile) {
		t.Errorf("a broken record: %v", err)
	}
}

// TestRecordGoesThroughNoLink: a home may belong to somebody else than who installs.
func TestRecordGoesThroughNoLink(t *testing.T) {
	inst := open(t)
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{keeperFile, typeFile} {
		if err := os.Symlink(precious, inst.Path(name)); err != nil {
			t.Skip("links cannot be made here: ", err)
		}
	}
	if err := writeKeeper(inst, keeperRecord{Keeper: KeeperDaemon, At: time.Now()}, Setup{}); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(precious); err != nil || string(text) != "precious" {
		t.Errorf("%q, %v", text, err)
	}
	if r, err := readKeeper(inst); err != nil || r.Keeper != KeeperDaemon {
		t.Errorf("%+v, %v", r, err)
	}
	if text, err := os.ReadFile(inst.Path(typeFile)); err != nil || string(text) != "DIRECT" {
		t.Errorf("%q, %v", text, err)
	}
	if err := errors.Join(removeKeeper(inst), removeKeeper(inst)); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(inst.Home); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestCrontabLines(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a system with crontabs")
	}
	home := filepath.Join(t.TempDir(), "it's 100% mine")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	inst, err := Open(home)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"devopsDaemon": "", ".agent.properties": "devops.agent.id=a1b2\n"} {
		if err := os.WriteFile(inst.Path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cron := ""
	var failure error
	d := &direct{inst: inst, goos: "linux", umask: "022", crontab: func(_ context.Context, stdin string, args ...string) (string, error) {
		if args[0] == "-" {
			cron = stdin
		}
		return cron, failure
	}}
	const others = "# m h dom mon dow\nPATH=/usr/bin\n\n5 4 * * * echo 50\\% # devops_agent_a1b2\n@reboot /opt/x # devops_agent_other\r\n@daily no newline at the end"
	cron = others
	setup := Setup{Home: home, Reboot: true}
	for range 3 {
		if err := d.Install(t.Context(), setup); err != nil {
			t.Fatal(err)
		}
	}
	line, ok := strings.CutPrefix(cron, others+"\n")
	if !ok || strings.Count(cron, "@reboot '") != 1 || !strings.HasSuffix(line, " & # devops_agent_a1b2\n") ||
		!strings.Contains(line, `it'\''s 100\% mine/devopsDaemon' </dev/null`) {
		t.Errorf("crontab:\n%s", cron)
	}
	if runtime.GOOS != "windows" { // what cron hands to the shell is the program's path, whatever is in it
		script := strings.ReplaceAll(strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "@reboot "), `\%`, "%")
		program := inst.Path("devopsDaemon")
		if err := errors.Join(os.WriteFile(program, []byte("#!/bin/sh\ntouch \"${0%/*}/ran\"\n"), 0o700), os.Chmod(program, 0o700)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("/bin/sh", "-c", script+"\nwait").CombinedOutput(); err != nil || !exists(inst.Path("ran")) {
			t.Errorf("%v\n%s", err, out)
		}
	}
	if s, err := d.State(t.Context()); err != nil || !s.Enabled {
		t.Errorf("%+v, %v", s, err)
	}
	if err := d.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cron != others+"\n" && cron != others {
		t.Errorf("after uninstall:\n%s", cron)
	}

	failure = errors.New("no such account") // what cannot be read is not overwritten
	before := cron
	if err := d.Install(t.Context(), setup); err == nil || cron != before {
		t.Errorf("%v, crontab now %q", err, cron)
	}
	failure = &exec.ExitError{Stderr: []byte("no crontab for ci\n")}
	cron = ""
	if text, err := d.readCrontab(t.Context()); text != "" || err != nil {
		t.Errorf("no crontab: %q, %v", text, err)
	}
	failure = &exec.Error{Name: "crontab", Err: exec.ErrNotFound}
	var hinter interface{ Hint() string }
	if err := d.Install(t.Context(), setup); !errors.As(err, &hinter) || !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("no cron: %v", err)
	}
}

func TestLives(t *testing.T) {
	inst := open(t)
	program := inst.Path("devopsAgent")
	if err := os.WriteFile(program, []byte("one"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", t.TempDir()} {
		t.Setenv("RUNTIME_DIRECTORY", dir)
		now := time.Now()
		born := func() (time.Duration, int) {
			t.Helper()
			now = now.Add(time.Millisecond)
			wait, n, err := inst.Born(program, now)
			if err != nil {
				t.Fatal(err)
			}
			return wait, n
		}
		if wait, n := born(); wait != 0 || n != 0 {
			t.Errorf("first start: %v, %d", wait, n)
		}
		for i, want := range []string{"0s", "0s", "0s", "0s", "0s", "200ms", "400ms", "800ms", "1.6s", "3.2s", "6.4s", "12.8s", "25.6s", "30s", "30s"} {
			if wait, n := born(); wait.String() != want || n != i+1 {
				t.Errorf("after %d fruitless ones: %v (%d), want %s", i+1, wait, n, want)
			}
		}
		if err := errors.Join(inst.Lived(), inst.Lived()); err != nil {
			t.Fatal(err)
		}
		for range 100 { // killed, and killed again
			if wait, n := born(); wait != 0 || n != 0 {
				t.Fatalf("after one that lived: %v, %d", wait, n)
			}
			if err := inst.Lived(); err != nil {
				t.Fatal(err)
			}
		}
		for range 30 {
			born()
		}
		if wait, _ := born(); wait != mostPause {
			t.Errorf("after thirty: %v", wait)
		}
		if err := os.WriteFile(program, []byte("another"+dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if wait, n := born(); wait != 0 || n != 0 {
			t.Errorf("another program: %v, %d", wait, n)
		}
		for range 30 {
			born()
		}
		if err := os.WriteFile(inst.Config, []byte("# mended"+dir), 0o600); err != nil {
			t.Fatal(err)
		}
		if wait, n := born(); wait != 0 || n != 0 {
			t.Errorf("another configuration: %v, %d", wait, n)
		}
		if info, err := os.Stat(inst.livesPath()); err != nil || info.Size() != 257 {
			t.Errorf("the record's length changes: %v, %v", info, err)
		}
	}
	t.Setenv("RUNTIME_DIRECTORY", "")
	if err := errors.Join(os.RemoveAll(inst.Path("runtime")), os.WriteFile(inst.Path("runtime"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if wait, _, err := inst.Born(program, time.Now()); wait != 0 || err == nil {
		t.Errorf("without a place for the record: %v, %v", wait, err)
	}
}

func FuzzLives(f *testing.F) {
	f.Add([]byte(`{"inode":1,"size":2,"changed":3,"streak":4,"blows":5,"at":"2026-01-02T03:04:05Z","lived":true}   `))
	f.Add([]byte(`{"streak":-1}`))
	f.Add([]byte(`{"blows":1e300}`))
	f.Add([]byte("\x00{"))
	f.Fuzz(func(t *testing.T, text []byte) {
		l := parseLives(text)
		if l.Streak < 0 || l.Blows < 0 || l.Blows > freeBlows {
			t.Errorf("%+v", l)
		}
	})
}

func FuzzWords(f *testing.F) {
	f.Add([]byte("READY=1\n\nSTATUS=idle\nWATCHDOG=1\n\nEXTEND_TIMEOUT_USEC=5000000\n\n"))
	f.Add([]byte("panic: no\n\ngoroutine 1\n\n=\n\nSTATUS=\xff\n\n"))
	f.Add([]byte("STATUS=" + strings.Repeat("x", 3*mostLine) + "\nREADY=1\r\n\r\n"))
	f.Add([]byte("EXTEND_TIMEOUT_USEC=9223372036854775807\n\nEXTEND_TIMEOUT_USEC=-1\n\nREADY=1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		words, done := make(chan word), make(chan struct{})
		go func() {
			defer close(words)
			readWords(strings.NewReader(string(text)), words, done)
		}()
		n := 0
		for w := range words {
			n++
			if len(w.status) > 3*mostLine || w.extend < 0 || w.extend > 24*time.Hour {
				t.Errorf("%+v", w)
			}
		}
		if n > strings.Count(string(text), "\n") {
			t.Errorf("%d messages", n)
		}
		go func() { readWords(strings.NewReader(string(text)), make(chan word), done) }()
		close(done) // nobody listens: it ends all the same
	})
}

func TestWords(t *testing.T) {
	words, done := make(chan word, 10), make(chan struct{})
	readWords(strings.NewReader("nonsense\n\nREADY=1\nSTATUS=2 builds = much\n\n\n\nWATCHDOG=1\n\nSTATUS="+strings.Repeat("x", 9000)+
		"\n\nEXTEND_TIMEOUT_USEC=3000000\n\nready=1\n\nREADY=1"), words, done)
	close(words)
	var got []word
	for w := range words {
		got = append(got, w)
	}
	if len(got) != 4 || got[0] != (word{ready: true, status: "2 builds = much"}) || got[1] != (word{}) ||
		len(got[2].status) > mostLine || got[3] != (word{extend: 3 * time.Second}) {
		t.Errorf("%+v", got)
	}
}

func TestLastWords(t *testing.T) {
	for said, want := range map[string]string{
		"":                     "",
		"one\ntwo\n":           "two",
		"two\nhint: go home\n": "two",
		"x\npanic: boom\n\ngoroutine 1 [running]:\nmain.main()\n\t/x.go:3\n":           "panic: boom",
		"devopsAgent: no room\nhint: make some\n" + strings.Repeat("y\n", 3*keptLines): "devopsAgent: no room",
		strings.Repeat("z", 5000): strings.Repeat("z", mostWords) + " …",
	} {
		l := &lastWords{}
		_ = readLines(strings.NewReader(said), func(line []byte) bool {
			if text := strings.TrimSpace(string(line)); text != "" {
				l.add(text)
			}
			return true
		})
		if got := l.text(); got != want {
			t.Errorf("%.40q: %q, want %q", said, got, want)
		}
	}
}
