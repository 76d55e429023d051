package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata"
	"unicode"
	"unicode/utf8"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// console is a log to memory.
func console(t *testing.T) (*Log, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	log, err := OpenLog(LogOptions{Console: &out})
	if err != nil {
		t.Fatal(err)
	}
	return log, &out
}

var stamp = regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\|`)

// TestLineForm: protocol §2.3.
func TestLineForm(t *testing.T) {
	for name, tc := range map[string]struct {
		say  func(l *slog.Logger)
		want string // behind the time
	}{
		"plain":       {func(l *slog.Logger) { l.Info("Build started", "build", "b-1", "vm_seq", 1) }, "INFO|Build started build=b-1 vm_seq=1"},
		"levels":      {func(l *slog.Logger) { l.Warn("w") }, "WARN|w"},
		"error":       {func(l *slog.Logger) { l.Error("e", "err", errors.New("open x: denied")) }, `ERROR|e err="open x: denied"`},
		"no error":    {func(l *slog.Logger) { l.Info("e", "err", nil) }, "INFO|e"},
		"empty":       {func(l *slog.Logger) { l.Info("e", "a", "") }, `INFO|e a=""`},
		"quotes":      {func(l *slog.Logger) { l.Info("e", "a", `say "hi"`, "b", "x=y", "c", "a|b", "d", `C:\ci`) }, `INFO|e a="say \"hi\"" b="x=y" c="a|b" d=C:\ci`},
		"with":        {func(l *slog.Logger) { l.With("build", "b-1").With("n", 2).Info("e", "m", 3) }, "INFO|e build=b-1 n=2 m=3"},
		"groups":      {func(l *slog.Logger) { l.With("a", 1).WithGroup("g").With("b", 2).WithGroup("h").Info("e", "c", 3) }, "INFO|e a=1 g.b=2 g.h.c=3"},
		"group value": {func(l *slog.Logger) { l.Info("e", slog.Group("g", "a", 1, slog.Group("", "b", 2)), slog.Group("none")) }, "INFO|e g.a=1 g.b=2"},
		"kinds": {func(l *slog.Logger) { l.Info("e", "d", 90*time.Second, "t", true, "f", 1.5, "s", []string{"a", "b"}) },
			`INFO|e d=1m30s t=true f=1.5 s="[a b]"`},
		"newline": {func(l *slog.Logger) { l.Info("one\ntwo\r", "a", "x\ny") }, `INFO|one two  a="x\ny"`},
		"terminal": {func(l *slog.Logger) {
			l.Info("\x1b]0;title\x07 \u009b2J \u202e", "a", "\x1b[2J", "b", "\u009bx", "c", "\u202egnp")
		}, `INFO| ]0;title   2J   a="\x1b[2J" b="\u009bx" c="\u202egnp"`},
		"keys":    {func(l *slog.Logger) { l.WithGroup("g h").Info("e", "a b", 1, "c\n", 2, slog.Group("x=y", "z", 3)) }, "INFO|e g_h.a_b=1 g_h.c_=2 g_h.x_y.z=3"},
		"bytes":   {func(l *slog.Logger) { l.Info("\xff\xfe", "a", "\xff") }, "INFO|\ufffd\ufffd a=\"\\xff\""},
		"chinese": {func(l *slog.Logger) { l.Info("构建开始", "机器", "北京") }, "INFO|构建开始 机器=北京"},
		"secret": {func(l *slog.Logger) {
			l.Info("e", "s", wire.Secret("hunter2"), "id", wire.Identity{Project: "p", Agent: "a", Secret: "hunter2"})
		}, "INFO|e s=(secret) id.project=p id.agent=a"},
	} {
		log, out := console(t)
		tc.say(log.Logger)
		line := out.String()
		if !stamp.MatchString(line) || strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
			t.Errorf("%s: %q", name, line)
			continue
		}
		if got := strings.TrimSuffix(line[len("2006-01-02 15:04:05.000|"):], "\n"); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestLevels(t *testing.T) {
	log, out := console(t)
	log.Debug("no")
	log.SetLevel(slog.LevelDebug)
	log.With("a", 1).Debug("yes")
	log.SetLevel(slog.LevelWarn)
	log.Info("no")
	if got := out.String(); strings.Contains(got, "no") || !strings.Contains(got, "DEBUG|yes a=1") {
		t.Errorf("%q", got)
	}
}

// TestHide: in the message, in an attribute, quoted once and twice, as JSON, in an address, of several lines.
func TestHide(t *testing.T) {
	for _, secret := range []string{"hunter2hunter2", `pa"ss\word`, "pass word", "pa<ss>&word", "密码密码", "key one\nkey two", `"quoted"`, "\xff\xfepass"} {
		log, out := console(t)
		log.Hide(secret)
		log.Hide(secret)
		log.Hide(secret[:len(secret)-1]) // a shorter one must not uncover the rest
		nested := fmt.Errorf("decode %q: bad", secret)
		log.With("with", secret).Info("said "+secret+" and "+secret, "attr", secret, "err", nested, "body", fmt.Sprintf("%q", fmt.Sprintf("%q", secret)),
			"url", "http://h/?t="+url.QueryEscape(secret), "json", asJSON(secret))
		for _, form := range []string{secret, secret[1 : len(secret)-1], strings.ReplaceAll(secret, "\n", " "), url.QueryEscape(secret), strings.Trim(asJSON(secret), `"`)} {
			if strings.Contains(out.String(), form) {
				t.Errorf("%q: %q is in %q", secret, form, out.String())
			}
		}
		if strings.Count(out.String(), "(secret)") < 6 || !utf8.Valid(out.Bytes()) {
			t.Errorf("%q: %q", secret, out.String())
		}
	}
	log, out := console(t)
	log.Hide("abc")
	log.Hide("")
	log.Info("abc")
	if !strings.Contains(out.String(), "|abc\n") {
		t.Errorf("three letters are no secret: %q", out.String())
	}
}

func asJSON(s string) string {
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("", "v", s)
	_, value, _ := strings.Cut(out.String(), `"v":`)
	return strings.TrimSuffix(strings.TrimSpace(value), "}")
}

// TestFileAndConsole: every line goes to both, and many writers do not mix lines.
func TestFileAndConsole(t *testing.T) {
	var out bytes.Buffer
	file := filepath.Join(t.TempDir(), "logs", "devopsAgent.log")
	log, err := OpenLog(LogOptions{File: file, Console: &out})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is there before its first line: %v", err)
	}
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for n := range 50 {
				log.Info("line", "writer", w, "n", n, "text", strings.Repeat("x", 200))
			}
		})
	}
	writers.Wait()
	if err := log.Close(); err != nil {
		t.Error(err)
	}
	data, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(data, out.Bytes()) {
		t.Errorf("file and console differ: %d and %d bytes, %v", len(data), out.Len(), err)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if len(lines) != 400 {
		t.Errorf("%d lines, want 400", len(lines))
	}
	for _, line := range lines {
		if !stamp.MatchString(line) || !strings.HasSuffix(line, "x") {
			t.Errorf("%q", line)
		}
	}
}

// TestRotation: rotated files keep the ending by which clean-up finds them (protocol §3.9), are private, and are few.
func TestRotation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	log, err := OpenLog(LogOptions{File: filepath.Join(dir, "devopsAgent.log"), MaxSizeMB: 1, KeepFiles: 2})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", 64<<10)
	for range 70 { // four megabytes and a bit
		log.Info(text)
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
	var names []string
	list := func() []string {
		names = nil
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
			if info, err := e.Info(); err == nil && (info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" || info.Size() > 1<<20) {
				t.Errorf("%s: mode %v, %d bytes", e.Name(), info.Mode(), info.Size())
			}
		}
		return names
	}
	// The surplus is removed by lumberjack's goroutine, which says nothing when it is done.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); len(list()) != 3; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%q, want one file and two rotated ones", names)
		}
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "devopsAgent") || !strings.HasSuffix(name, ".log") {
			t.Errorf("a log called %s", name)
		}
	}
}

// TestRotateDailyRotates: what RotateDaily does at midnight, and that it ends.
func TestRotateDailyRotates(t *testing.T) {
	dir := t.TempDir()
	log, err := OpenLog(LogOptions{File: filepath.Join(dir, "devopsAgent.log")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- log.RotateDaily(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	none, _ := console(t)
	if err := none.RotateDaily(t.Context()); err != nil {
		t.Errorf("without a file: %v", err)
	}
	if err := errors.Join(log.Close(), none.Close()); err != nil {
		t.Error(err)
	}
}

// TestDaily: once at each midnight, whenever the program was started.
func TestDaily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.Sleep(7*time.Hour + 30*time.Minute)
		var at []time.Time
		done := make(chan struct{})
		go func() {
			defer close(done)
			daily(ctx, func() { at = append(at, time.Now()) })
		}()
		time.Sleep(72 * time.Hour)
		cancel()
		<-done
		if len(at) != 3 {
			t.Fatalf("%d times in three days: %v", len(at), at)
		}
		for _, when := range at {
			if when.Hour() != 0 || when.Minute() != 0 || when.Second() != 0 {
				t.Errorf("at %v", when)
			}
		}
	})
}

// TestNextMidnight, where there is none as well: a rotation every instant from 23:00 on would be the price.
func TestNextMidnight(t *testing.T) {
	for _, tc := range []struct{ zone, now, want string }{
		{"UTC", "2026-02-28T23:59:59Z", "2026-03-01T00:00:00Z"},
		{"UTC", "2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z"},
		{"Asia/Shanghai", "2026-12-31T12:00:00+08:00", "2027-01-01T00:00:00+08:00"},
		{"Europe/Berlin", "2026-03-28T22:00:00+01:00", "2026-03-29T00:00:00+01:00"},
		{"America/Santiago", "2025-09-06T12:00:00-04:00", "2025-09-07T01:00:00-03:00"}, // no midnight that night
		{"America/Santiago", "2025-09-06T23:30:00-04:00", "2025-09-07T01:00:00-03:00"},
		{"America/Santiago", "2025-04-05T23:30:00-03:00", "2025-04-06T00:00:00-04:00"}, // 23:30 comes twice
		{"America/Santiago", "2025-04-05T23:30:00-04:00", "2025-04-06T00:00:00-04:00"},
		{"America/Havana", "2025-03-08T23:00:00-05:00", "2025-03-09T01:00:00-04:00"},
		{"Africa/Cairo", "2025-04-24T20:00:00+02:00", "2025-04-25T01:00:00+03:00"},
	} {
		zone, err := time.LoadLocation(tc.zone)
		if err != nil {
			t.Fatal(err)
		}
		now, err := time.Parse(time.RFC3339, tc.now)
		if err != nil {
			t.Fatal(err)
		}
		if got := nextMidnight(now.In(zone)).Format(time.RFC3339); got != tc.want {
			t.Errorf("%s, %s: %s, want %s", tc.zone, tc.now, got, tc.want)
		}
	}
}

// full is a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// TestFullDisk costs lines of the file, and nothing else.
func TestFullDisk(t *testing.T) {
	log, out := console(t)
	log.sink.file = full{}
	log.Info("one")
	log.sink.console = full{}
	log.Info("two")
	log.sink.console = nil
	log.Info("three")
	log.sink.fallback = out
	log.Info("four")
	if got := out.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "|one\n") || !strings.Contains(got, "|four\n") {
		t.Errorf("%q", got)
	}
	log.sink.file = &bytes.Buffer{}
	log.Info("five")
	if strings.Contains(out.String(), "five") {
		t.Error("the fallback gets what the file takes")
	}
}

// TestLogDirectoryThatCannotBe is told at once; one that vanishes later is not the end.
func TestLogDirectoryThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "logs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLog(LogOptions{File: filepath.Join(dir, "logs", "x.log")}); err == nil || !strings.HasPrefix(err.Error(), "open log: ") {
		t.Errorf("a file named logs: %v", err)
	}
	var out bytes.Buffer
	log, err := OpenLog(LogOptions{File: filepath.Join(dir, "there", "x.log"), Fallback: &out})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "there")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "there"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	log.Info("lost")
	if !strings.Contains(out.String(), "|lost\n") {
		t.Errorf("fallback: %q", out.String())
	}
	_ = log.Close()
}

// FuzzLine: whatever is logged is one line of text, and never the secret.
func FuzzLine(f *testing.F) {
	f.Add("Build started", "build", "b-1", "hunter2hunter2")
	f.Fuzz(func(t *testing.T, message, key, value, secret string) {
		var out bytes.Buffer
		log, err := OpenLog(LogOptions{Console: &out})
		if err != nil {
			t.Fatal(err)
		}
		log.Hide(secret)
		log.With(key, value).WithGroup(key).Info(message+secret+message, slog.String(key, value+secret), slog.Any("err", fmt.Errorf("%q", secret)),
			slog.Group(value, slog.String(key, secret)))
		line := out.String()
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") || !utf8.ValidString(line) ||
			strings.ContainsFunc(strings.TrimSuffix(line, "\n"), unicode.IsControl) {
			t.Errorf("%q", line)
		}
		// Brackets apart: "(secret)" and what follows it can spell a secret that begins with one by accident. What
		// is only blanks, or is written in the program's own words, cannot be told from the line around it. Secrets come
		// out of JSON or a file of text: half a letter at their end is none.
		if utf8.ValidString(secret) && len(strings.TrimSpace(secret)) >= 4 && !strings.ContainsAny(secret, "()") && !strings.Contains("(secret)", secret) && strings.Contains(line, secret) {
			t.Errorf("secret %q in %q", secret, line)
		}
	})
}
