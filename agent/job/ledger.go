package job

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// State is how far a build has come on this machine.
type State string

// The states of a Record. Ended is kept until the server has taken the report.
const (
	Starting State = "starting"
	Running  State = "running"
	Ended    State = "ended"
)

// Record is what is known of one build on disk, so that a build outlives its agent: a new agent adopts what runs,
// and reports what ended meanwhile (weaknesses W-45, W-56).
type Record struct {
	Build    wire.Build `json:"build"`
	State    State      `json:"state"`
	Language string     `json:"language"`          // of the texts shown to the build's user
	PID      int        `json:"pid,omitempty"`     // of the process that was started
	Started  string     `json:"started,omitempty"` // its start time, as proc tells it: a pid alone may be reused
	Outcome  *Outcome   `json:"outcome,omitempty"` // once Ended
	At       time.Time  `json:"at"`                // of the last change of State
}

// Ledger keeps the records of builds, a file each (0600), in runtime/builds.
type Ledger struct{ dir string }

// OpenLedger makes the directory if need be.
func OpenLedger(dir string) (*Ledger, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open build records: %w", err)
	}
	return &Ledger{dir: dir}, nil
}

func (l *Ledger) path(b wire.Build) string {
	if checkIDs(b) != nil {
		// Only refused builds have such ids; their report still has to survive a restart.
		return filepath.Join(l.dir, fmt.Sprintf("refused-%x.json", hash(b.ID+"\x00"+b.VMSeq)))
	}
	return filepath.Join(l.dir, key(b)+".json")
}

// Put writes a record. A Starting record is renamed into place but not synced: after a power cut its worker is gone
// as well. All others are on disk when Put returns.
func (l *Ledger) Put(r Record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record build %s: %w", r.Build.ID, err)
	}
	path := l.path(r.Build)
	if r.State == Starting {
		err = quickWrite(path, data)
	} else {
		err = swap.WriteFile(path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("record build %s: %w", r.Build.ID, err)
	}
	return nil
}

func quickWrite(path string, data []byte) error {
	temp := path + ".new"
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return errors.Join(err, removeIfThere(temp))
	}
	return os.Rename(temp, path)
}

// Drop forgets a build: the server has its report.
func (l *Ledger) Drop(b wire.Build) error { return removeIfThere(l.path(b)) }

// All reads every record. One that cannot be read is set aside as *.bad and logged: it must not keep the agent
// from starting, and must not be read again.
func (l *Ledger) All(log *slog.Logger) ([]Record, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("read build records: %w", err)
	}
	var records []Record
	for _, e := range entries {
		path := filepath.Join(l.dir, e.Name())
		if strings.HasSuffix(path, ".new") {
			_ = removeIfThere(path)
			continue
		}
		if !strings.HasSuffix(path, ".json") {
			continue
		}
		r, err := readRecord(path)
		if err != nil {
			log.Warn("Build record set aside", "path", path, "err", err, "renamed", os.Rename(path, path+".bad") == nil)
			continue
		}
		records = append(records, r)
	}
	return records, nil
}

func readRecord(path string) (Record, error) {
	var r Record
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err == nil && (r.State != Starting && r.State != Running && r.State != Ended || r.State == Ended && r.Outcome == nil) {
		err = fmt.Errorf("state %.20q makes no sense", r.State)
	}
	return r, err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
