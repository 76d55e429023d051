package worker

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

func TestParseReadsAJavaCommandLine(t *testing.T) {
	job := base64.StdEncoding.EncodeToString([]byte(`{"projectId":"demo","buildId":"b-1","vmSeqId":"2","workspace":"/w","new":1,"dockerBuildInfo":{"secretKey":"x"}}`))
	a, err := Parse([]string{"-Ddevops.slave.agent.start.file=/s", "-Ddevops.agent.error.file=/e=1", "-Dother", "-Xmx2g", "-XX:+Some", "-jar", "/x y/z.jar", job})
	if err != nil || a.StartFile != "/s" || a.ErrorFile != "/e=1" || a.Job.ID != "b-1" || a.Job.VMSeq != "2" || a.Job.Workspace != "/w" || a.Job.Docker != nil || a.LogPrefix != "agent" {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := Parse([]string{"-DAGENT_LOG_PREFIX=../x", strings.TrimRight(job, "=")}); err != nil || a.LogPrefix != "agent" {
		t.Errorf("%+v, %v", a, err)
	}
}

func FuzzJob(f *testing.F) {
	f.Add(base64.StdEncoding.EncodeToString([]byte(`{"projectId":"demo","buildId":"b-1","vmSeqId":"2"}`)))
	f.Add("e30=")
	f.Fuzz(func(t *testing.T, s string) {
		job, err := decodeJob(s)
		if err != nil {
			return
		}
		for _, name := range []string{job.ID, job.VMSeq, job.Project} {
			if name == "" || strings.ContainsAny(name, "/\\\x00\n ") || filepath.Base(name) != name {
				t.Errorf("%q was taken for a name", name)
			}
		}
	})
}

func TestPropertiesOfBothDialects(t *testing.T) {
	got := parseProperties("\ufeff# c\r\n; c\n! c\n[section]\na=1\r\n b = x=y \nurl=http\\://h\nc:2\nnothing\na=2\nempty=\n")
	want := map[string]string{"a": "2", "b": "x=y", "url": "http://h", "c": "2", "empty": ""}
	if len(got) != len(want) {
		t.Errorf("%v", got)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
}

func TestReadSettingsNamesWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadSettings(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	file := filepath.Join(dir, ".agent.properties")
	good := "devops.project.id=p\ndevops.agent.id=a\ndevops.agent.secret.key=s3cret-value\nlandun.gateway=ci.example.com\n"
	for text, want := range map[string]string{
		strings.Replace(good, "devops.agent.id", "x", 1):    "devops.agent.id",
		strings.Replace(good, "landun.gateway", "x", 1):     "landun.gateway",
		strings.Replace(good, "ci.example.com", "ht tp", 1): "gateway",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSettings(dir); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v, want it to name %s", err, want)
		}
	}
	if err := os.WriteFile(file, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := ReadSettings(dir); err != nil || s.Identity.Agent != "a" || string(s.Identity.Secret) != "s3cret-value" {
		t.Errorf("%+v, %v", s, err)
	}
	if pool, err := Roots(dir); pool != nil || err != nil {
		t.Errorf("no .cert: %v, %v", pool, err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".cert"), []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Roots(dir); err == nil {
		t.Error("a bad .cert was taken")
	}
}

func TestReplacement(t *testing.T) {
	vars := map[string]string{"a": "1", "a.b": "2", "ref": "${a}", "e": ""}
	lookup := func(k string) (string, bool) { v, ok := vars[k]; return v, ok }
	for in, want := range map[string][2]string{ // classic, constrained
		"x ${a} ${{ a }} ${{a.b}}":  {"x 1 1 2", "x ${a} 1 2"},
		"${ref} ${{ ref }}":         {"${a} ${a}", "${ref} ${a}"},
		"${no} ${{ no }} ${a":       {"${no} ${{ no }} ${a", "${no} ${{ no }} ${a"},
		"# ${a}\n  #${{ a }}\n${a}": {"# ${a}\n  #${{ a }}\n1", "# ${a}\n  #${{ a }}\n${a}"},
		"${a:-${a}} $a {a} ${}":     {"${a:-1} $a {a} ${}", "${a:-${a}} $a {a} ${}"},
		"[${e}] ${{ a}} ${{\n a }}": {"[] 1 ${{\n a }}", "[${e}] 1 ${{\n a }}"},
		"${a}${a}\r\n${{ a }}":      {"11\r\n1", "${a}${a}\r\n1"},
	} {
		if got := (replacer{lookup: lookup}).Text(in); got != want[0] {
			t.Errorf("classic %q: %q, want %q", in, got, want[0])
		}
		if got := (replacer{lookup: lookup, constrained: true}).Text(in); got != want[1] {
			t.Errorf("constrained %q: %q, want %q", in, got, want[1])
		}
	}
	if got, unknown := (replacer{lookup: lookup}).Strict("/w/${a}/${no}/${{ nope }}"); got != "/w/1/${no}/${{ nope }}" || len(unknown) != 2 {
		t.Errorf("%q %v", got, unknown)
	}
}

func FuzzReplace(f *testing.F) {
	f.Add("a ${x} ${{ y }} ${{z}", "v")
	f.Add("# ${x}\n${${x}}", "${x}")
	f.Fuzz(func(t *testing.T, in, v string) {
		none := replacer{lookup: func(string) (string, bool) { return "", false }}
		if got := none.Text(in); got != in {
			t.Errorf("without variables %q became %q", in, got)
		}
		all := replacer{lookup: func(string) (string, bool) { return v, true }}
		if got := all.Text(in); strings.Count(in, "${") == 0 && got != in {
			t.Errorf("%q became %q", in, got)
		}
	})
}

func TestOutputCommands(t *testing.T) {
	for line, want := range map[string]command{
		"::set-variable name=K::V":                            {name: setVariable, key: "K", value: "V"},
		`"::set-output name=a.b::v::w"`:                       {name: setOutput, key: "a.b", value: "v::w"},
		"::set-output name=k::":                               {name: setOutput, key: "k"},
		"::set-remark it is good":                             {name: setRemark, value: "it is good"},
		"::set-error error_code=812345,error_message=no, sir": {name: setError, code: 812345, value: "no, sir"},
		"::set-gate-value name=cov::80":                       {name: setGate, key: "cov", value: "80"},
		"::set-progress-rate 0.33336":                         {name: setProgress, rate: 0.3334},
	} {
		got, ok := parseCommand(line)
		if !ok || got.name != want.name || got.key != want.key || got.value != want.value || got.code != want.code || got.rate != want.rate {
			t.Errorf("%s: %+v %v", line, got, ok)
		}
	}
	if c, ok := parseCommand(`::set-progress-rate {"done": [1]}`); !ok || c.detail["done"] == nil {
		t.Errorf("%+v %v", c, ok)
	}
	for _, line := range []string{
		"", "x", " ::set-variable name=K::V", "::set-variable name=K", "::set-variable K::V", "::set-variable name=::V", "::set-variable",
		"::set-error error_code=712345,error_message=x", "::set-error error_code=81234,error_message=x", "::set-error error_code=8x2345,error_message=x",
		"::set-progress-rate 1.5", "::set-progress-rate -0.1", "::set-progress-rate NaN", "::set-progress-rate [1]", "::set-progress-rate {", "::set-other x",
		"::set-progress-rate {\"x\":\"" + strings.Repeat("x", 33<<10) + "\"}", "::set-remark ",
	} {
		if c, ok := parseCommand(line); ok {
			t.Errorf("%q was taken for a command: %+v", clip(line, 60), c)
		}
	}
}

func FuzzCommand(f *testing.F) {
	for _, seed := range []string{"::set-variable name=K::V", `"::set-error error_code=812345,error_message=x"`, `::set-progress-rate {"a":1}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		c, ok := parseCommand(line)
		if !ok {
			return
		}
		if !strings.Contains(line, c.name) || c.rate < 0 || c.rate > 1 || c.code != 0 && (c.code < 800000 || c.code > 899999) {
			t.Errorf("%q: %+v", line, c)
		}
		if _, err := json.Marshal(c.detail); err != nil {
			t.Error(err)
		}
	})
}

func TestTimeLimits(t *testing.T) {
	const week = 7 * 24 * time.Hour
	for in, want := range map[string]time.Duration{
		`{"timeout":10}`: 10 * time.Minute, `{"timeout":"10"}`: 10 * time.Minute, `{}`: 100 * time.Minute, `{"timeout":null}`: 900 * time.Minute,
		`{"timeout":"x"}`: 900 * time.Minute, `nonsense`: 900 * time.Minute, `{"timeout":0}`: week, `{"timeout":-1}`: week, `{"timeout":1e300}`: week, ``: week,
		`{"timeout":1,"timeoutSeconds":1.5}`: 1500 * time.Millisecond, `{"timeout":1,"timeoutSeconds":"x"}`: time.Minute, `{"timeout":1,"timeoutSeconds":-1}`: time.Minute,
	} {
		if got := taskLimit(in, true); got != want {
			t.Errorf("%s: %v, want %v", in, got, want)
		}
	}
	if got := taskLimit("", false); got != week {
		t.Errorf("no options: %v", got)
	}
	if jobLimit(0) != 900*time.Minute || jobLimit(1500) != 1500*time.Millisecond || jobLimit(1<<62) != week {
		t.Error("job limit")
	}
}

func TestMaskingOverlapsAndForms(t *testing.T) {
	m := &masker{}
	m.Add("secret", "retrieve", "ab", "it's me", " padded ", "p\nq\nr", "first line\n  second's line\r\nx\n")
	for in, want := range map[string]string{
		"a secret.": "a ******.", "secretrieve": "******", "secretsecret": "************", "ab": "ab", "its me": "******", "it's me": "******",
		"padded": "******", "pqr": "******", "first line": "******", "seconds line": "******", "second's line": "******", "?q=it%27s+me&": "?q=******&", "http://it%27s%20me@h": "http://******@h", "nothing": "nothing", "": "",
	} {
		if got := m.Mask(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if !m.Is("secret") || m.Is("secre") || m.Is("") {
		t.Error("Is")
	}
}

func TestWhoReadsTheWrapper(t *testing.T) {
	for in, sh := range map[string]bool{
		"x": true, "#!/bin/bash\n": false, "#!/usr/bin/env zsh\n": false, "#!/usr/bin/env python3\n": true, "#!/usr/bin/python3.11 -u\n": true,
		"#!/usr/bin/env -S A=b node --x\n": true, "#!/opt/my-shell\n": false,
	} {
		if got := wrapperWords(in)[0] == "/bin/sh"; got != sh {
			t.Errorf("%q: sh %t", in, got)
		}
	}
}

// lineOf runs output through splitter, masker and pieces as a task does.
func lineOf(m *masker, chunks ...[]byte) []string {
	var lines []string
	s := &splitter{line: func(l string) { lines = append(lines, pieces(m.Mask(l))...) }, cut: m.Cut}
	for _, chunk := range chunks {
		_, _ = s.Write(chunk)
	}
	_ = s.Close()
	return lines
}

func TestASecretIsHiddenWhereverAnEndlessLineIsCut(t *testing.T) {
	m := &masker{}
	m.Add("swordfish", "fishing-rod-of-some-length")
	for at := maxLine - 40; at < maxLine+10; at++ {
		text := strings.Repeat("x", at) + "swordfishing-rod-of-some-length" + strings.Repeat("y", maxLine)
		got := strings.Join(lineOf(m, []byte(text)), "")
		if want := strings.Repeat("x", at) + masked + strings.Repeat("y", maxLine); got != want {
			t.Fatalf("at %d: %d characters, want %d", at, len(got), len(want))
		}
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("a\r\nb\rc\n\xff\x00"), uint16(3), "b\rc")
	f.Add(bytes.Repeat([]byte("😀secret"), 9000), uint16(1000), "secret")
	f.Fuzz(func(t *testing.T, raw []byte, at uint16, secret string) {
		m := &masker{}
		cut := min(int(at), len(raw))
		whole, parts := lineOf(m, raw), lineOf(m, raw[:cut], raw[cut:])
		if strings.Join(whole, "\n") != strings.Join(parts, "\n") {
			t.Errorf("cut at %d: %q and %q", cut, whole, parts)
		}
		if !strings.ContainsAny(secret, "\r\n*") && utf8.ValidString(secret) && strings.TrimSpace(secret) == secret && len(secret) >= shortest {
			m.Add(secret)
		}
		for _, piece := range lineOf(m, raw) {
			if !utf8.ValidString(piece) || strings.ContainsAny(piece, "\r\n") || len(utf16.Encode([]rune(piece))) > maxPiece {
				t.Errorf("piece %q", clip(piece, 100))
			}
			if m.Is(secret) && strings.Contains(piece, secret) {
				t.Errorf("%q can be read in %q", secret, clip(piece, 100))
			}
			if _, err := encodeLines([]entry{{}}); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestLocalLogHasTheHouseFormAndNoSecret(t *testing.T) {
	var b bytes.Buffer
	m := &masker{}
	m.Add("hidden-value")
	log := slog.New(&lines{w: &b, mu: &sync.Mutex{}, mask: m}).With("build", "b-1")
	log.Info("A message", "err", errors.New("two\nlines with hidden-value"))
	log.Debug("not shown")
	stamp, rest, _ := strings.Cut(b.String(), "|")
	if _, err := time.Parse("2006-01-02 15:04:05.000", stamp); err != nil || rest != "info|A message build=b-1 err=two\\nlines with ******\n" {
		t.Errorf("%q (%v)", b.String(), err)
	}
}

func TestWrappersInWindowsLanguages(t *testing.T) {
	s := step{
		script: "echo %A%\nexit /b 3", workspace: `C:\work & play\100%`, wrapper: `C:\tmp\w.bat`, user: `C:\tmp\it's.ps1`,
		result: `C:\work & play\100%\b-r.log`, gate: `C:\g.ini`, flag: `C:\f.log`, charset: "UTF_8",
		variables: map[string]string{"A": `x & y | "z" %PATH% ^ (1)`, "ci.token": "t", "TWO": "1\n2", "B": "it's ’ $x `n"},
		envs:      []toolEnv{{path: `C:\tool`, vars: map[string]string{"TOOL": "1"}}},
	}
	got := batchFile(s)
	if strings.Count(got, "\n") != strings.Count(got, "\r\n") {
		t.Error("a batch file needs CRLF everywhere")
	}
	contains(t, got, "@echo off\r\n", "chcp 65001>nul\r\n", `set WORKSPACE=C:\work ^& play\100%%`+"\r\n",
		`set A=x ^& y ^| ^"z^" %%PATH%% ^^ ^(1^)`+"\r\n", `>>"C:\work & play\100%%\b-r.log" echo(%~1=%~2`+"\r\n", "\r\nexit\r\n", ":setGateValue\r\n",
		"set PATH=C:\\tool;%PATH%\r\n", "set TOOL=1\r\n", "echo %A%\r\nexit /b 3\r\n")
	for _, hidden := range []string{"ci.token", "TWO"} {
		if strings.Contains(got, hidden) {
			t.Errorf("%s is in the batch file", hidden)
		}
	}
	init, script := strings.Index(got, "echo init>"), strings.Index(got, "echo script>>")
	if init < 0 || script < init || script > strings.Index(got, "echo %A%") {
		t.Error("the markers are not around the preparation")
	}
	got = powerShellWrapper(s)
	contains(t, got, "\ufeff", `'B', 'it''s ’’ $x `+"`n'", `. 'C:\tmp\it''s.ps1'`, "exit $LASTEXITCODE", `AppendAllText('C:\work & play\100%\b-r.log'`)
}

func TestInterpreterIsReadLikeTheKernelDoes(t *testing.T) {
	for in, want := range map[string]string{
		"#!/bin/bash\nx": "/bin/bash", "#!/usr/bin/env bash -x\n": "/usr/bin/env|bash -x", "#!/bin/sh  -e ": "/bin/sh|-e", "echo\n#!/bin/bash": "/bin/sh",
		"#! /bin/bash\n": "/bin/sh", // the server's rule is "#!/"
	} {
		if got := strings.Join(interpreter(shebang(in)), "|"); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
