package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/service"
)

// rule is what the design says about who may replace programs (home and vendor), in as few words as it takes. It knows versions
// only; the installation under test knows files only.
type rule struct {
	live, vendor int
	mode         string
	adopted      int          // that came from the package last
	decided      map[int]bool // versions of the package that mode server has looked at, or that were adopted
	bad          map[int]bool // tried here and taken back
	left         map[int]bool // by going back, since another version was last taken
	way          []int        // versions to go back to, the latest last
	kept         []int        // of those, the ones that are still here for sure
}

const never = 0

// broken versions do not prove themselves.
func broken(version int) bool { return version%5 == 4 }

// try is an upgrade to a version, whoever wants it.
func (r *rule) try(version int) {
	switch {
	case version == r.live:
	case broken(version) && r.live != never:
		r.bad[version] = true
	default:
		if r.live != never {
			r.way, r.kept = append(r.way, r.live), append(r.kept, r.live)
		}
		r.live = version
		clear(r.left)
		r.forget()
	}
}

// next is the version that going back leads to.
func (r *rule) next() int {
	for _, version := range slices.Backward(r.way) {
		if version != r.live {
			return version
		}
	}
	return never
}

// forget keeps two steps.
func (r *rule) forget() {
	var steps []int
	for _, version := range slices.Backward(r.way) {
		if version != r.live && !slices.Contains(steps, version) && len(steps) < mostBackups {
			steps = append(steps, version)
		}
	}
	r.kept = slices.DeleteFunc(r.kept, func(version int) bool { return !slices.Contains(steps, version) })
}

func (r *rule) start() {
	if r.vendor == never {
		return
	}
	adopt := false
	switch {
	case r.live == never:
		adopt = true
	case r.mode == ModePackage:
		adopt = r.vendor != r.adopted && !r.bad[r.vendor]
	case r.mode == ModeServer:
		adopt = !r.decided[r.vendor] && r.vendor > r.live && !r.bad[r.vendor]
		r.decided[r.vendor] = true
	}
	if adopt {
		r.adopted, r.decided[r.vendor] = r.vendor, true
		r.try(r.vendor)
	}
}

func (r *rule) server(version int) {
	if r.mode == ModeServer && !r.bad[version] && !r.left[version] {
		r.try(version)
	}
}

func (r *rule) file(version int) { // an operator's, with --force
	delete(r.bad, version)
	r.try(version)
}

// back goes to a version on the way.
func (r *rule) back(to int) {
	for n, version := range slices.Backward(r.way) {
		if version == to {
			r.way = r.way[:n]
			break
		}
	}
	r.left[r.live] = true
	delete(r.left, to)
	r.live = to
	r.forget()
}

// machine is an installation with real files. A program is a file that holds its version.
type machine struct {
	t      *testing.T
	inst   *service.Installation
	j      *Journal
	vendor string
	mode   string
	clock  time.Time
	rand   *rand.Rand
}

func newMachine(t *testing.T, seed uint64) *machine {
	t.Helper()
	inst, err := service.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, inst: inst, vendor: t.TempDir(), mode: ModeServer, clock: time.Unix(1_800_000_000, 0), rand: rand.New(rand.NewPCG(seed, 4))}
	m.open()
	return m
}

// open is what a new process does.
func (m *machine) open() {
	m.j = Open(m.inst, slog.New(slog.DiscardHandler))
	m.j.now = func() time.Time { return m.clock }
}

func program(version int, p Part) string {
	return fmt.Sprintf("%s of version %d%s", p, version, strings.Repeat(".", version%3))
}

func (m *machine) put(dir string, version int) {
	m.t.Helper()
	for _, p := range []Part{Agent, Daemon} {
		path := filepath.Join(dir, Place(p, m.j.goos))
		if err := errors.Join(os.WriteFile(path+".new", []byte(program(version, p)), 0o755), os.Rename(path+".new", path)); err != nil {
			m.t.Fatal(err)
		}
	}
}

// version is what a program says it is; never when there is none.
func (m *machine) version(path string) int {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return never
	}
	_, number, _ := strings.Cut(strings.TrimRight(string(text), "."), " of version ")
	version, aerr := strconv.Atoi(number)
	if err != nil || aerr != nil {
		m.t.Fatalf("%s holds %q: %v", path, text, err)
	}
	return version
}

func (m *machine) live() int { return m.version(filepath.Join(m.inst.Home, Place(Agent, m.j.goos))) }

func (m *machine) shipped() Vendor {
	return Vendor{
		Dir: m.vendor, Mode: m.mode, Proof: time.Second,
		Version: func(_ context.Context, program string) (string, error) { return strconv.Itoa(m.version(program)), nil },
		Compare: func(a, b string) (int, bool) {
			x, _ := strconv.Atoi(a)
			y, _ := strconv.Atoi(b)
			return x - y, true
		},
	}
}

// start is a start of the agent by its keeper, and that agent's life until it has settled or crashed.
func (m *machine) start() {
	m.t.Helper()
	for lives := 0; ; lives++ {
		if lives > MostStarts+2 {
			m.t.Fatal("it does not come to rest")
		}
		m.open()
		r, err := m.j.Recover(context.Background(), Last{})
		if err != nil {
			m.t.Fatal(err)
		}
		if r.State == None {
			before, berr := m.j.Unseen(m.vendor, m.mode)
			settled := m.j.readShelf().Sum
			begun, err := m.j.Adopt(context.Background(), m.shipped())
			after, aerr := m.j.Unseen(m.vendor, m.mode)
			if err := errors.Join(berr, err, aerr); err != nil {
				m.t.Fatal(err)
			}
			if fresh := m.j.readShelf().Sum != settled; after || before && !fresh || begun && fresh && !before && m.live() != never {
				m.t.Fatalf("unseen %v before and %v after; adopted %v, from %q", before, after, begun, settled)
			}
			if begun {
				if m.rand.IntN(4) == 0 {
					continue // killed here
				}
				if r, err = m.j.Recover(context.Background(), Last{}); err != nil {
					m.t.Fatal(err)
				}
			}
		}
		if broken(m.live()) && r.State == Trial {
			continue // crashes
		}
		if m.rand.IntN(8) == 0 {
			continue // killed before it has proved itself
		}
		if _, err := m.j.Settle(); err != nil {
			m.t.Fatal(err)
		}
		return
	}
}

// upgrade is what the server, or an operator, does with a version; refused says that nothing was begun.
func (m *machine) upgrade(kind Kind, version int) (refused bool) {
	m.t.Helper()
	from := m.t.TempDir()
	m.put(from, version)
	if kind == FromServer && m.mode != ModeServer {
		return true
	}
	digest, err := m.j.disk.Sum(filepath.Join(from, Place(Agent, m.j.goos)))
	if err != nil {
		m.t.Fatal(err)
	}
	if kind == FromFile {
		if err := m.j.Forgive(Agent, digest); err != nil {
			m.t.Fatal(err)
		}
	} else if bad, err := m.j.Bad(Agent, digest); err != nil {
		m.t.Fatal(err)
	} else if bad != nil {
		return true
	} else if left, err := m.j.Left(digest); err != nil {
		m.t.Fatal(err)
	} else if left != nil {
		return true
	}
	plan := Plan{Kind: kind, Reached: true, Proof: time.Second}
	for _, p := range []Part{Agent, Daemon} {
		plan.Items = append(plan.Items, Item{Part: p, From: filepath.Join(from, Place(p, m.j.goos)), Was: strconv.Itoa(m.live()), Now: strconv.Itoa(version)})
	}
	return m.carryOut(plan)
}

func (m *machine) carryOut(plan Plan) (refused bool) {
	m.t.Helper()
	if _, err := m.j.Begin(plan); errors.Is(err, ErrNothing) {
		return true
	} else if err != nil {
		m.t.Fatal(err)
	}
	if m.rand.IntN(4) > 0 { // else the power fails here
		if err := m.j.Apply(context.Background()); err != nil {
			m.t.Fatal(err)
		}
	}
	m.start()
	return false
}

// back is "devopsAgent rollback"; gone says that too many versions came since.
func (m *machine) back() (gone bool) {
	m.t.Helper()
	plan, err := m.j.Previous("")
	var none *NoPreviousError
	if errors.As(err, &none) {
		return true
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.carryOut(*plan)
	return false
}

func TestTheVersionThatRunsIsTheOneTheRuleSays(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, seed)
			r := &rule{mode: ModeServer, decided: map[int]bool{}, bad: map[int]bool{}, left: map[int]bool{}}
			var told []string
			sure := 0
			for step := range 40 {
				version := 1 + m.rand.IntN(14)
				m.clock = m.clock.Add(time.Duration(m.rand.IntN(100)) * time.Hour)
				var did string
				switch what := m.rand.IntN(10); {
				case step == 0 || what < 3: // apt, up or down
					for r.live == never && broken(version) {
						version++ // the first of all has nothing to return to
					}
					did = fmt.Sprintf("package %d", version)
					m.put(m.vendor, version)
					r.vendor = version
					m.start()
					r.start()
				case what < 5:
					did = fmt.Sprintf("server %d", version)
					m.upgrade(FromServer, version)
					r.server(version)
				case what < 6:
					did = fmt.Sprintf("file %d", version)
					m.upgrade(FromFile, version)
					r.file(version)
				case what < 8:
					did = "back"
					to := r.next()
					switch gone := m.back(); {
					case to == never && gone:
					case slices.Contains(r.kept, to):
						r.back(to)
						sure++
					case !gone: // a version that is here by chance
						r.back(m.live())
					}
				case what < 9:
					m.mode = []string{ModeServer, ModePackage, ModeOff}[m.rand.IntN(3)]
					r.mode = m.mode
					did = "mode " + m.mode
				default:
					did = "clock back"
					m.clock = m.clock.Add(-365 * 24 * time.Hour)
				}
				m.start()
				r.start()
				told = append(told, did)
				if m.live() != r.live {
					t.Fatalf("version %d runs; the rule says %d, after %q", m.live(), r.live, told)
				}
				if agent, daemon := m.live(), m.version(filepath.Join(m.inst.Home, Place(Daemon, m.j.goos))); agent != daemon {
					t.Fatalf("agent %d and daemon %d, after %q", agent, daemon, told)
				}
			}
			t.Logf("%d steps, %d of them certain ones back", len(told), sure)
		})
	}
}
