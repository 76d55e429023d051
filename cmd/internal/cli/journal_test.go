package cli

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// entry is one record as the journal gets it.
type entry struct {
	message  string
	priority journal.Priority
	vars     map[string]string
}

// inJournal is a log whose journal is memory.
func inJournal(t *testing.T, o LogOptions) (*Log, *[]entry) {
	t.Helper()
	log, err := OpenLog(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	var got []entry
	log.Logger = slog.New(slog.NewMultiHandler(log.Handler(), journaled(log, o, func(message string, priority journal.Priority, vars map[string]string) error {
		got = append(got, entry{message, priority, maps.Clone(vars)})
		return nil
	})))
	return log, &got
}

func TestJournalFields(t *testing.T) {
	log, got := inJournal(t, LogOptions{File: filepath.Join(t.TempDir(), "devopsAgent.log"), Fallback: os.Stderr, Level: slog.LevelDebug})
	base := log.With("build", "b-1")
	base.With("vm_seq", 1).WithGroup("g").Warn("Build\nstarted", "user", "a b", slog.Group("h", "pid", 7), "err", errors.New("x\ny"), "none", nil)
	base.Info("again", "id", wire.Identity{Project: "p", Secret: "hunter2hunter2"})
	log.Error("e")
	log.Debug("d", strings.Repeat("k", 100), 1, "ключ", 2, "_x", 3)
	for i, want := range []entry{
		{`Build started build=b-1 vm_seq=1 g.user="a b" g.h.pid=7 g.err="x\ny"`, journal.PriWarning,
			map[string]string{"DEVOPS_BUILD": "b-1", "DEVOPS_VM_SEQ": "1", "DEVOPS_G_USER": "a b", "DEVOPS_G_H_PID": "7", "DEVOPS_G_ERR": "x\ny"}},
		{"again build=b-1 id.project=p id.agent=\"\"", journal.PriInfo, map[string]string{"DEVOPS_BUILD": "b-1", "DEVOPS_ID_PROJECT": "p", "DEVOPS_ID_AGENT": ""}},
		{"e", journal.PriErr, map[string]string{}},
		{"d " + strings.Repeat("k", 100) + "=1 ключ=2 _x=3", journal.PriDebug,
			map[string]string{"DEVOPS_" + strings.Repeat("K", 57): "1", "DEVOPS_____": "2", "DEVOPS__X": "3"}},
	} {
		want.vars["SYSLOG_IDENTIFIER"] = "devopsAgent"
		if e := (*got)[i]; e.message != want.message || e.priority != want.priority || !maps.Equal(e.vars, want.vars) {
			t.Errorf("%d: %+v, want %+v", i, e, want)
		}
	}
}

// TestJournalHides what the file hides, in the sentence and in the fields.
func TestJournalHides(t *testing.T) {
	for _, secret := range []string{"hunter2hunter2", `pa"ss\word`, "密码密码", "key one\nkey two"} {
		log, got := inJournal(t, LogOptions{Fallback: os.Stderr})
		log.Hide(secret)
		log.With("with", secret).Info("said "+secret, "attr", "x"+secret+"y", "err", errors.New(secret))
		for _, e := range *got {
			all := e.message
			for name, value := range e.vars {
				all += name + "=" + value + "\n"
			}
			if strings.Contains(all, secret) || strings.Contains(all, secret[1:]) || strings.Count(all, "(secret)") != 7 {
				t.Errorf("%q: %q", secret, all)
			}
		}
	}
}

// TestOneCopyInTheJournal: what goes there by fields does not go there as text.
func TestOneCopyInTheJournal(t *testing.T) {
	for _, o := range []LogOptions{{Console: os.Stderr}, {Fallback: os.Stderr}, {Console: os.Stderr, Fallback: os.Stderr}} {
		log, got := inJournal(t, o)
		if log.sink.console != nil || log.sink.fallback != nil {
			t.Error("standard error still gets lines")
		}
		log.Info("x")
		if len(*got) != 1 {
			t.Errorf("%d records", len(*got))
		}
	}
	var out bytes.Buffer
	log, _ := inJournal(t, LogOptions{Console: &out, Fallback: os.Stderr})
	log.Info("x")
	if !strings.HasSuffix(out.String(), "|INFO|x\n") {
		t.Errorf("another console lost its line: %q", out.String())
	}
}

// TestJournalThatIsNotThere: the line is not lost.
func TestJournalThatIsNotThere(t *testing.T) {
	var stderr bytes.Buffer
	log, err := OpenLog(LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h := journaled(log, LogOptions{}, func(string, journal.Priority, map[string]string) error { return errors.New("no socket") }).(*journalHandler)
	h.stderr = &stderr
	slog.New(h).Info("kept", "a", 1)
	if stderr.String() != "kept a=1\n" {
		t.Errorf("%q", stderr.String())
	}
}

// TestOnlyStandardErrorLeadsToTheJournal: a log that never wrote there does not begin to.
func TestOnlyStandardErrorLeadsToTheJournal(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "1:1")
	for _, o := range []LogOptions{{}, {Console: &bytes.Buffer{}}, {Fallback: os.Stderr}} {
		if toJournal(o) {
			t.Errorf("%+v", o)
		}
	}
}

// FuzzFieldName: the journal takes every name.
func FuzzFieldName(f *testing.F) {
	for _, s := range []string{"build", "vm_seq", "", "_x", "ключ", "a.b", "\xff", strings.Repeat("k", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		name := fieldName(key)
		if !strings.HasPrefix(name, "DEVOPS_") || len(name) > 64 || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
			t.Errorf("%q becomes %q", key, name)
		}
	})
}
