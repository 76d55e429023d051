package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// lives is what "upgrader start" remembers between starts of an agent: keepers that start it at once, however often it
// ends, are slowed down by that program.
type lives struct {
	Inode   uint64    `json:"inode"`
	Size    int64     `json:"size"`
	Changed int64     `json:"changed"`
	Config  int64     `json:"config"` // when agent.toml was written
	Streak  int       `json:"streak"` // starts in a row after which the agent did not come to life
	Blows   float64   `json:"blows"`  // ends of living agents that are free, as of At
	At      time.Time `json:"at"`     // of the last start
	Lived   bool      `json:"lived"`  // the agent of that start has come to life
}

const (
	freeFaults = 5                      // starts in a row that are not waited for
	faultPause = 200 * time.Millisecond // before the next; it doubles
)

// Born is called before the agent's program is started: it notes one more start and returns how long to wait before it,
// and how many starts in a row have not come to anything. An agent whose program or agent.toml has
// changed begins afresh. A record that
// cannot be kept is an error, and no reason to wait.
func (i *Installation) Born(program string, now time.Time) (wait time.Duration, fruitless int, err error) {
	l := i.readLives()
	file, config := StampOf(program), StampOf(i.Config).changed
	p := pace{streak: l.Streak, blows: l.Blows, at: l.At}
	switch same := l.Inode == file.inode && l.Size == file.size && l.Changed == file.changed && l.Config == config; {
	case l.At.IsZero() || !same || now.Before(l.At):
		p = newPace(now)
	case l.Lived:
		p.streak = 0
		wait = p.blow(now, true)
	default:
		p.streak++
		if over := p.streak - freeFaults; over > 0 {
			wait = mostPause
			if over < 9 {
				wait = min(mostPause, faultPause<<(over-1))
			}
		}
	}
	l = lives{Inode: file.inode, Size: file.size, Changed: file.changed, Config: config, Streak: p.streak, Blows: p.blows, At: now}
	return wait, p.streak, i.writeLives(l)
}

// Lived is called by an agent that has come to life: it is about to send its first request, or has been told by a server.
// Calls after the first cost one read.
func (i *Installation) Lived() error {
	l := i.readLives()
	if l.At.IsZero() || l.Lived {
		return nil
	}
	l.Lived = true
	return i.writeLives(l)
}

// livesPath is in the unit's own directory below /run where there is one: that is writable when the disk is full.
func (i *Installation) livesPath() string {
	if dir := os.Getenv("RUNTIME_DIRECTORY"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "starts")
	}
	return i.Path("runtime", "starts")
}

// readLives returns nothing for a record that is not there or makes no sense.
func (i *Installation) readLives() lives {
	f, err := os.Open(i.livesPath())
	if err != nil {
		return lives{}
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return lives{}
	}
	return parseLives(text)
}

func parseLives(text []byte) lives {
	var l lives
	if json.Unmarshal(text, &l) != nil || l.Streak < 0 || l.Blows < 0 || l.Blows > freeBlows {
		return lives{}
	}
	return l
}

// writeLives writes over what is there, at the same length, so that a full disk takes it. Half a record counts as none.
func (i *Installation) writeLives(l lives) error {
	text, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("note a start: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(i.livesPath()), 0o700); err != nil {
		return fmt.Errorf("note a start: %w", err)
	}
	f, err := os.OpenFile(i.livesPath(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("note a start: %w", err)
	}
	_, err = fmt.Fprintf(f, "%-256s\n", text)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("note a start: %w", err)
	}
	return nil
}
