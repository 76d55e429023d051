package journal

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Part is something that is replaced as a whole.
type Part string

// The parts of an installation (protocol §2.1).
const (
	Agent    Part = "agent"    // devopsAgent
	Daemon   Part = "daemon"   // devopsDaemon
	Native   Part = "native"   // devopsWorker
	Upgrader Part = "upgrader" // ours, that keepers start; replaced when the rest has proved itself
	Worker   Part = "worker"   // worker-agent.jar
	JDK      Part = "jdk"      // the directory of JDK 8
	JDK17    Part = "jdk17"    // the directory of JDK 17
	Init     Part = "init"     // agent_docker_init.sh
)

// Kind is where an upgrade comes from.
type Kind string

// The kinds.
const (
	FromServer Kind = "server"   // BK-CI ordered it
	FromFile   Kind = "file"     // "devopsAgent upgrade --from"
	FromTmp    Kind = "tmp"      // "upgrader -action=upgrade" on files in tmp/ that somebody else put there
	FromVendor Kind = "vendor"   // the package manager brought another version
	Rollback   Kind = "rollback" // "devopsAgent rollback"
)

// Move is one file or directory to be replaced. Paths are relative to home, with slashes.
type Move struct {
	Part  Part   `json:"part"`
	Live  string `json:"live"`           // what is replaced
	Fresh string `json:"fresh"`          // what takes its place
	Kept  string `json:"kept,omitempty"` // where the old one is until the end; "" when there was none
	Tree  bool   `json:"tree,omitempty"` // a directory
	Old   string `json:"old,omitempty"`  // SHA-256 of the old file; "" for a directory, or none
	New   string `json:"new,omitempty"`  // SHA-256 of the new file; of a directory, of the archive it came from, if known
	From  string `json:"from,omitempty"` // version, for people
	To    string `json:"to,omitempty"`
}

// late reports that the part is replaced when the others have proved themselves: what recovers is never new itself.
func (m Move) late() bool { return m.Part == Upgrader }

// trial reports that the part has to prove itself in use.
func (m Move) trial() bool { return m.Part == Agent || m.Part == Daemon }

// Record is an upgrade that has begun. What is on disk never changes; how far it got is the name of its file.
type Record struct {
	ID      string    `json:"id"`
	Kind    Kind      `json:"kind"`
	Source  string    `json:"source,omitempty"` // for people: a file, a version of a package
	At      time.Time `json:"at"`
	Moves   []Move    `json:"moves"`
	Reached bool      `json:"reached"`           // the version before could reach its server
	Foreign bool      `json:"foreign,omitempty"` // the new agent is not one of ours: it cannot say that it is well
	Proof   int       `json:"proof_s"`           // seconds the new agent has to run well before the old one goes
	Tell    bool      `json:"tell,omitempty"`    // the server waits to hear how it ended
}

// onTrial reports that something in it has to prove itself in use. The first agent of a home has nothing that could return.
func (r *Record) onTrial() bool {
	if m, ok := r.Of(Agent); ok && m.Old == "" {
		return false
	}
	for _, m := range r.Moves {
		if m.trial() {
			return true
		}
	}
	return false
}

// Of returns the move of a part.
func (r *Record) Of(p Part) (Move, bool) {
	for _, m := range r.Moves {
		if m.Part == p {
			return m, true
		}
	}
	return Move{}, false
}

// State is how far an upgrade got.
type State string

// The states of an open upgrade.
const (
	None       State = ""       // no upgrade is open
	Ready      State = "ready"  // everything is there and about to move; some of it may have
	Trial      State = "trial"  // the new parts are in place and have not proved themselves
	Cancelling State = "cancel" // not everything could be put into place, nothing was tried: the old parts are about to return
	Undoing    State = "undo"   // the new parts were tried and the old ones are about to return; some may have
	Settling   State = "settle" // the new parts stay; what is left of the old ones is about to go
)

const (
	dir        = "upgrade" // below home
	openPrefix = "open-"
	attemptOf  = "attempt.json"
	stderrOf   = "stderr"
	causeOf    = "cause.json"
	pidOf      = "pid"
	lastOf     = "last.json"
	recordOf   = "record"      // before the upgrade is open; once it has ended, with "." and how
	marker     = ".upgrade-id" // in a new directory: which upgrade it belongs to
	damaged    = "damaged-"
)

// name is that of the record's file in a state.
func (s State) name(starts int) string {
	if s == Trial {
		return openPrefix + string(s) + "-" + strconv.Itoa(starts)
	}
	return openPrefix + string(s)
}

// stateOf reads the name of a file.
func stateOf(name string) (s State, starts int, ok bool) {
	rest, ok := strings.CutPrefix(name, openPrefix)
	if !ok {
		return None, 0, false
	}
	switch State(rest) {
	case Ready, Cancelling, Undoing, Settling:
		return State(rest), 0, true
	}
	count, ok := strings.CutPrefix(rest, string(Trial)+"-")
	if !ok {
		return None, 0, false
	}
	starts, err := strconv.Atoi(count)
	if err != nil || starts < 0 || strconv.Itoa(starts) != count {
		return None, 0, false
	}
	return Trial, starts, true
}

// rank orders states for the case that two files are found: what was decided last wins.
func (s State) rank() int {
	switch s {
	case Ready:
		return 1
	case Trial:
		return 2
	case Cancelling:
		return 3
	case Undoing:
		return 4
	case Settling:
		return 5
	}
	return 0
}

// What comes from the disk is input: these are all the names that are followed.
var (
	goodID     = regexp.MustCompile(`^[0-9]{1,12}-[0-9a-f]{4}$`)
	goodSum    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	goodTree   = regexp.MustCompile(`^(jdk|jre)([0-9A-Za-z._+-]{0,60}[0-9A-Za-z_+-])?$`)     // both traditions (protocol §4.5), and those of operators
	goodBackup = regexp.MustCompile(`^upgrade/[0-9]{1,12}-[0-9a-f]{4}/old/[A-Za-z][\w.-]*$`) // of an attempt
)

// number is when an upgrade began, as its name says it: in seconds, and later than every earlier one of this home.
func number(id string) int64 {
	text, _, _ := strings.Cut(id, "-")
	n, _ := strconv.ParseInt(text, 10, 64) // goodID has seen it
	return n
}

// lastNumber bounds the clocks that are believed: the year 5138.
const lastNumber = 99_999_999_999

// newID names an upgrade: when it began, and four digits that nobody can foresee. It is later than all of names, also
// when the clock was set back: history is read in the order of these names.
func newID(now time.Time, names []string) string {
	at := max(now.Unix(), 0)
	for _, name := range names {
		if goodID.MatchString(name) && number(name) >= at && number(name) < lastNumber {
			at = number(name) + 1
		}
	}
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return strconv.FormatInt(min(at, lastNumber), 10) + "-" + hex.EncodeToString(b[:])
}

// most is the largest record or history entry that is read, in bytes.
const most = 256 << 10

// encode writes a record with its digest in front.
func encode(r *Record) ([]byte, error) {
	body, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return append([]byte("devops-agent upgrade 1 "+hex.EncodeToString(sum[:])+"\n"), append(body, '\n')...), nil
}

// errDamaged: a record is not what was written.
var errDamaged = errors.New("damaged")

// decode reads what encode wrote and believes none of it: a path that leads out of home would be followed by root.
func decode(text []byte, goos string) (*Record, error) {
	head, body, ok := bytes.Cut(text, []byte("\n"))
	sum, known := bytes.CutPrefix(head, []byte("devops-agent upgrade 1 "))
	if !ok || !known || len(text) > most {
		return nil, fmt.Errorf("%w: not an upgrade record", errDamaged)
	}
	body = bytes.TrimSuffix(body, []byte("\n"))
	if got := sha256.Sum256(body); hex.EncodeToString(got[:]) != string(sum) {
		return nil, fmt.Errorf("%w: wrong digest", errDamaged)
	}
	var r Record
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err := r.check(goos); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return &r, nil
}

// check refuses a record that names anything but the parts of an installation and what Begin makes beside them.
func (r *Record) check(goos string) error {
	if !goodID.MatchString(r.ID) || len(r.Moves) == 0 || r.Proof < 0 {
		return errors.New("no such upgrade")
	}
	used := make(map[string]bool)
	for _, m := range r.Moves {
		if err := m.check(r.ID, goos); err != nil {
			return err
		}
		for _, name := range []string{m.Live, m.Fresh, m.Kept} {
			name = strings.ToLower(name) // there are file systems to which these are one
			if name != "" && used[name] {
				return fmt.Errorf("path %q has two uses", name)
			}
			used[name] = true
		}
	}
	return nil
}

func (m Move) check(id, goos string) error {
	switch m.Part {
	case Agent, Daemon, Native, Upgrader, Worker, JDK, JDK17, Init:
	default:
		return fmt.Errorf("part %q", m.Part)
	}
	if m.Tree != m.Part.tree() || m.Old != "" && !goodSum.MatchString(m.Old) || m.New != "" && !goodSum.MatchString(m.New) {
		return fmt.Errorf("half a move of part %q", m.Part)
	}
	if m.Tree {
		for _, name := range []string{m.Live, m.Fresh, m.Kept} {
			if !goodTree.MatchString(name) && (name != "" || m.Kept != "") {
				return fmt.Errorf("path %q of part %q", name, m.Part)
			}
		}
		if m.Live == "" || m.Fresh == "" {
			return fmt.Errorf("half a move of part %q", m.Part)
		}
		return nil
	}
	name := Place(m.Part, goos)
	kept := ""
	if m.Old != "" {
		kept = oldPath(id, name)
	}
	if m.New == "" || m.Live != name || m.Fresh != newPath(id, name) || m.Kept != kept {
		return fmt.Errorf("paths %q, %q, %q of part %q", m.Live, m.Fresh, m.Kept, m.Part)
	}
	return nil
}

// newPath and oldPath are where Begin puts the new and the old file of a name, below home.
func newPath(id, name string) string { return dir + "/" + id + "/new/" + name }
func oldPath(id, name string) string { return dir + "/" + id + "/old/" + name }

// tree reports that a part is a directory.
func (p Part) tree() bool { return p == JDK || p == JDK17 }

// program reports that a rollback brings the part back.
func (p Part) program() bool { return p == Agent || p == Daemon || p == Native }
