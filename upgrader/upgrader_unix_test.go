//go:build unix

package upgrader

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/fetch"
	"github.com/devops-agent/devops-agent/upgrader/journal"
	"github.com/devops-agent/devops-agent/upgrader/trust"
	"github.com/devops-agent/devops-agent/upgrader/unpack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// remote is a server of files, as BK-CI's, and a source of them.
type remote struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string][]byte // by BK-CI's names
	sums  map[string]string // announced instead of the right ones
	asked []string          // name, and eTag if there was one
}

func newRemote(t *testing.T) *remote {
	t.Helper()
	r := &remote{files: map[string][]byte{}, sums: map[string]string{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

// ServeHTTP is the download of protocol §1.6.6.
func (r *remote) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name, etag := q.URL.Query().Get("file"), q.URL.Query().Get("eTag")
	r.asked = append(r.asked, strings.TrimSpace(name+" "+etag))
	data, ok := r.files[name]
	if !ok {
		http.Error(w, "no", http.StatusNotFound)
		return
	}
	sum := digest(data)
	if etag == sum {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if wrong, ok := r.sums[name]; ok {
		sum = wrong
	}
	w.Header().Set("X-Checksum-Md5", sum)
	_, _ = w.Write(data)
}

func digest(data []byte) string {
	sum := md5.Sum(data)
	return hex.EncodeToString(sum[:])
}

// Fetch is what the agent does with its gateway.
func (r *remote) Fetch(ctx context.Context, p journal.Part, suffix string, q fetch.Request) (fetch.Result, error) {
	return fetch.File(ctx, q, func(ctx context.Context, _ int64, etag string) (*http.Response, error) {
		address := r.URL + "?file=" + RemoteName(p, runtime.GOOS, runtime.GOARCH) + suffix
		if etag != "" {
			address += "&eTag=" + etag
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, err
		}
		return r.Client().Do(req)
	})
}

func (r *remote) put(p journal.Part, data string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files[RemoteName(p, runtime.GOOS, runtime.GOARCH)] = []byte(data)
}

// site is a home and what upgrades it.
type site struct {
	*Upgrader
	t *testing.T
	*remote
}

// program is a script that says its version.
func program(version string) string { return "#!/bin/sh\necho " + version + "\n" }

// java says three lines, and asks a jar for its version by printing the jar.
const java = "#!/bin/sh\nif [ \"$1\" = -version ]; then echo 'openjdk version \"17.0.1\"' >&2; echo two >&2; echo three >&2; fi\n"

func newSite(t *testing.T) *site {
	t.Helper()
	home := t.TempDir()
	for _, dir := range []string{"runtime", "tmp", "jdk17/bin", "jdk/bin"} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	inst, err := service.Open(home)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(&testWriter{t}, nil))
	s := &site{t: t, remote: newRemote(t), Upgrader: &Upgrader{Inst: inst, Journal: journal.Open(inst, log), GOOS: runtime.GOOS, GOARCH: runtime.GOARCH,
		Log: log, JarVersion: func(_ context.Context, java, jar string) string {
			if _, err := os.Stat(java); err != nil {
				return ""
			}
			data, _ := os.ReadFile(jar)
			if text := strings.TrimSpace(string(data)); strings.HasPrefix(text, "v") {
				return text
			}
			return ""
		}}}
	s.write("devopsAgent", program("v1"), 0o755)
	s.write("worker-agent.jar", "v1.0.0\n", 0o644)
	s.write("jdk17/bin/java", java, 0o755)
	s.write("jdk17/old", "old", 0o644)
	s.put(journal.Agent, program("v2"))
	s.put(journal.Daemon, program("v2"))
	s.put(journal.Upgrader, "#!/bin/sh\nexit 1\n")
	s.put(journal.Worker, "v2.0.0\n")
	s.put(journal.JDK17, jdkZip(t, "", map[string]string{"release": "new"}))
	s.put(journal.Init, "#!/bin/sh\n# new\n")
	return s
}

// testWriter writes a test's log.
type testWriter struct{ t *testing.T }

// Write writes one line.
func (w *testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// jdkZip is an archive of a JDK, below a directory if that has a name.
func jdkZip(t *testing.T, top string, more map[string]string) string {
	t.Helper()
	files := map[string]string{strings.TrimPrefix(unpack.Java("/", runtime.GOOS), "/"): java}
	for name, text := range more {
		files[name] = text
	}
	return zipOf(t, top, files)
}

// noise is a text that does not become shorter in an archive.
func noise(n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return string(b)
}

func zipOf(t *testing.T, top string, files map[string]string) string {
	t.Helper()
	return zipWith(t, 0o755, top, files)
}

func zipWith(t *testing.T, mode fs.FileMode, top string, files map[string]string) string {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &zip.FileHeader{Name: top + name, Method: zip.Deflate}
		h.SetMode(mode)
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (s *site) write(name, text string, mode fs.FileMode) {
	s.t.Helper()
	path := s.Inst.Path(filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) read(name string) string {
	data, err := os.ReadFile(s.Inst.Path(filepath.FromSlash(name)))
	if err != nil {
		return ""
	}
	return string(data)
}

func (s *site) stock() *Inventory {
	s.t.Helper()
	inv, err := s.TakeStock(Installed{JDKDir: s.Inst.Path("jdk"), JDK17Dir: s.Inst.Path("jdk17"), Agent: "v1", Worker: "v1.0.0", JDK: "17"})
	if err != nil {
		s.t.Fatal(err)
	}
	return inv
}

func (s *site) prepare(o Order) *Stage {
	s.t.Helper()
	return s.prepareFrom(o, s.remote, false)
}

func (s *site) prepareFrom(o Order, from Source, force bool) *Stage {
	s.t.Helper()
	stage, err := s.Prepare(s.t.Context(), o, s.stock(), from, force)
	if err != nil {
		s.t.Fatal(err)
	}
	return stage
}

// strays are names in home that no upgrade should leave, once it has ended.
func (s *site) strays() []string {
	s.t.Helper()
	var found []string
	for _, pattern := range []string{"jdk*_*", "*.zip", ".*", "*.old", "tmp/*.part*", "tmp/incoming/*", "upgrade/open-*", "tmp/offered-*"} {
		names, err := filepath.Glob(s.Inst.Path(filepath.FromSlash(pattern)))
		if err != nil {
			s.t.Fatal(err)
		}
		found = append(found, names...)
	}
	return found
}

func (s *site) clean() {
	s.t.Helper()
	if found := s.strays(); len(found) > 0 {
		s.t.Errorf("left behind: %v", found)
	}
}

func (s *site) refused(stage *Stage, p journal.Part) error {
	s.t.Helper()
	for _, e := range stage.Refused {
		if e.Part == p {
			return e
		}
	}
	s.t.Errorf("%s was not refused; refused: %v, brings %s", p, stage.Refused, stage)
	return nil
}

func TestPartsAreReplacedTogether(t *testing.T) {
	s := newSite(t)
	stage := s.prepare(Order{Worker: true, JDK17: true, Init: true})
	if err := stage.Err(); err != nil || !stage.Any() || stage.Programs() {
		t.Fatalf("%v, any %v, programs %v", err, stage.Any(), stage.Programs())
	}
	if s.read("worker-agent.jar") != "v1.0.0\n" || s.read("jdk17/old") != "old" {
		t.Error("something live has changed already")
	}
	jdks, err := s.Replace(t.Context(), stage, journal.Plan{Kind: journal.FromServer, Tell: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(jdks) != 1 || jdks[0] != (Live{journal.JDK17, s.Inst.Path("jdk17")}) {
		t.Errorf("JDKs at %v", jdks)
	}
	if got := s.read("worker-agent.jar") + s.read("jdk17/release") + s.read("agent_docker_init.sh"); got != "v2.0.0\nnew#!/bin/sh\n# new\n" {
		t.Errorf("live: %q", got)
	}
	if s.read("jdk17/old") != "" {
		t.Error("the old JDK is still there")
	}
	if info, err := os.Stat(s.Inst.Path("agent_docker_init.sh")); err != nil || info.Mode().Perm()&0o100 == 0 {
		t.Errorf("the script cannot be executed: %v, %v", info, err)
	}
	list, err := s.Journal.Untold()
	if err != nil || len(list) != 1 || list[0].State != journal.Settled {
		t.Errorf("to be told: %+v, %v", list, err)
	}
	s.clean()
	// The same again changes nothing, and is not even sent again.
	s.asked = nil
	stage = s.prepare(Order{Worker: true, JDK17: true, Init: true})
	if stage.Any() || stage.Err() != nil || stage.Same != 3 {
		t.Errorf("again: %s, %v, %d the same", stage, stage.Err(), stage.Same)
	}
	for _, asked := range s.asked {
		if !strings.Contains(asked, " ") {
			t.Errorf("asked without eTag: %s", asked)
		}
	}
	s.clean()
}

// TestPartsFailEachForItself: a part that cannot be had, or is bad, leaves the others alone and nothing behind (statements 83, 84, 88, 95).
func TestPartsFailEachForItself(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*site)
		part  journal.Part
		check func(error) bool
	}{
		"404": {func(s *site) { delete(s.files, "jar/worker-agent.jar") }, journal.Worker,
			func(err error) bool { var e *fetch.StatusError; return errors.As(err, &e) && e.Code == 404 }},
		"wrong digest": {func(s *site) { s.sums["jar/worker-agent.jar"] = strings.Repeat("0", 32) }, journal.Worker,
			func(err error) bool { var e *fetch.DigestError; return errors.As(err, &e) }},
		"no version": {func(s *site) { s.put(journal.Worker, "<html>") }, journal.Worker, func(err error) bool { return errors.Is(err, ErrNoWorkerVersion) }},
		"entry leads out": {func(s *site) { s.put(journal.JDK17, jdkZip(s.t, "", map[string]string{"../evil": "x"})) }, journal.JDK17,
			func(err error) bool { return errors.Is(err, unpack.ErrTraversal) }},
		"absolute entry": {func(s *site) { s.put(journal.JDK17, jdkZip(s.t, "", map[string]string{"/evil": "x"})) }, journal.JDK17,
			func(err error) bool { return errors.Is(err, unpack.ErrAbsolute) }},
		"no archive": {func(s *site) { s.put(journal.JDK17, "<html>") }, journal.JDK17, func(err error) bool { return errors.Is(err, unpack.ErrFormat) }},
		"no java":    {func(s *site) { s.put(journal.JDK17, zipOf(s.t, "", map[string]string{"readme": "x"})) }, journal.JDK17, func(err error) bool { return err != nil }},
		"java fails": {func(s *site) {
			s.put(journal.JDK17, zipOf(s.t, "", map[string]string{strings.TrimPrefix(unpack.Java("/", runtime.GOOS), "/"): "#!/bin/sh\necho broken >&2\nexit 3\n"}))
		}, journal.JDK17, func(err error) bool { var e *ProgramError; return errors.As(err, &e) && e.Said == "broken" }},
		"java of another machine": {func(s *site) {
			s.put(journal.JDK17, zipOf(s.t, "", map[string]string{strings.TrimPrefix(unpack.Java("/", runtime.GOOS), "/"): "\x7fELF\x02\x01\x01junk"}))
		}, journal.JDK17, func(err error) bool { var e *ProgramError; return errors.As(err, &e) && e.Hint() != "" }},
		"too large": {func(s *site) { s.MaxBytes = 20 }, journal.JDK17, func(err error) bool { var e *fetch.TooLongError; return errors.As(err, &e) }},
		"no room to unpack": {func(s *site) {
			s.put(journal.JDK17, jdkZip(s.t, "", map[string]string{"big": noise(1 << 20)}))
			s.Free = func(string) (uint64, error) { return 1 << 20, nil }
		}, journal.JDK17, func(err error) bool { var e *fetch.RoomError; return errors.As(err, &e) && e.Need > 1<<20 }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			c.spoil(s)
			stage := s.prepare(Order{Worker: true, JDK17: true, Init: true})
			if err := s.refused(stage, c.part); !c.check(err) {
				t.Errorf("refused with %v", err)
			}
			if stage.pieces[journal.Init] == nil {
				t.Error("the script was given up as well")
			}
			if s.read("tmp/"+localName(c.part, s.GOOS)) != "" {
				t.Error("what was refused is in tmp")
			}
			stage.Discard()
			s.clean()
			if s.read("worker-agent.jar") != "v1.0.0\n" || s.read("jdk17/old") != "old" {
				t.Error("something live has changed")
			}
			if found, _ := filepath.Glob(filepath.Join(filepath.Dir(s.Inst.Home), "evil")); len(found) > 0 {
				t.Error("an entry was written outside")
			}
		})
	}
}

func TestAJDKBelowADirectory(t *testing.T) {
	s := newSite(t)
	s.put(journal.JDK17, jdkZip(t, "jdk-17.0.1/", map[string]string{"release": "new"}))
	if _, err := s.Replace(t.Context(), s.prepare(Order{JDK17: true}), journal.Plan{Kind: journal.FromFile}); err != nil {
		t.Fatal(err)
	}
	if s.read("jdk17/release") != "new" {
		t.Error("the JDK is not where it belongs")
	}
	s.clean()
}

// TestJDKPlace: both naming traditions are replaced where they are, somebody else's directory is left alone (protocol §4.5).
func TestJDKPlace(t *testing.T) {
	s := newSite(t)
	for configured, want := range map[string]string{"jdk": "jdk", "jre": "jre", "jdk1718000000": "jdk1718000000", "jdk_1718000000": "jdk_1718000000",
		"": "jdk", "/usr/lib/jvm/jdk": "jdk", "../jdk": "jdk", "java8": "jdk", "sub/jdk": "jdk"} {
		if configured != "" && !filepath.IsAbs(configured) {
			configured = s.Inst.Path(filepath.FromSlash(configured))
		}
		if got := s.jdkPlace(configured, journal.JDK); got != want {
			t.Errorf("JDK at %s is replaced at %s, want %s", configured, got, want)
		}
	}
	for configured, want := range map[string]string{"jdk17": "jdk17", "jdk17-1718000000": "jdk17-1718000000", "jdk17_1718000000": "jdk17_1718000000", "jdk": "jdk17"} {
		if got := s.jdkPlace(s.Inst.Path(configured), journal.JDK17); got != want {
			t.Errorf("JDK 17 at %s is replaced at %s, want %s", configured, got, want)
		}
	}
}

// TestWhatDoesNotWorkWhereItIsLiveReturns: all parts of the transaction do.
func TestWhatDoesNotWorkWhereItIsLiveReturns(t *testing.T) {
	s := newSite(t)
	stage := s.prepare(Order{Worker: true, JDK17: true})
	s.JarVersion = func(context.Context, string, string) string { return "" }
	_, err := s.Replace(t.Context(), stage, journal.Plan{Kind: journal.FromServer, Tell: true})
	var back *TakenBackError
	if !errors.As(err, &back) || !strings.Contains(back.Attempt.Reason, "tells no version") {
		t.Errorf("error %v", err)
	}
	if s.read("worker-agent.jar") != "v1.0.0\n" || s.read("jdk17/old") != "old" || s.read("jdk17/release") != "" {
		t.Error("the old parts are not back")
	}
	list, err := s.Journal.Untold()
	if err != nil || len(list) != 1 || list[0].State != journal.TakenBack {
		t.Errorf("to be told: %+v, %v", list, err)
	}
	s.clean()
}

func TestAnAgentIsThreePrograms(t *testing.T) {
	for _, spoilt := range []journal.Part{"", journal.Agent, journal.Daemon, journal.Upgrader} {
		s := newSite(t)
		s.write("devopsDaemon", program("v1"), 0o755)
		if spoilt != "" {
			delete(s.files, RemoteName(spoilt, runtime.GOOS, runtime.GOARCH))
		}
		stage := s.prepare(Order{Agent: true, Worker: true})
		if stage.Programs() != (spoilt == "") || stage.pieces[journal.Worker] == nil {
			t.Errorf("without %q: programs %v, brings %s", spoilt, stage.Programs(), stage)
		}
		if spoilt != "" {
			s.refused(stage, spoilt)
			continue
		}
		if stage.Upgrader() != s.Inst.Path("tmp", "upgrader") {
			t.Errorf("upgrader %q", stage.Upgrader())
		}
		if info, err := os.Stat(stage.Upgrader()); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("mode of the upgrader %v, %v", info.Mode(), err)
		}
		if _, err := s.Replace(t.Context(), stage, journal.Plan{Kind: journal.FromServer}); err != nil {
			t.Fatal(err)
		}
		r, err := s.Begin(t.Context(), stage, journal.Plan{Kind: journal.FromServer, Tell: true, Reached: true, Proof: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		m, ok := r.Of(journal.Agent)
		if !ok || m.From != "v1" || m.To != "v2" || !r.Foreign || !r.Reached || r.Proof != 30 {
			t.Errorf("record %+v", r)
		}
		if _, ok := r.Of(journal.Daemon); ok != (runtime.GOOS == "linux") {
			t.Errorf("daemon in the record: %v", ok)
		}
		if _, ok := r.Of(journal.Upgrader); ok {
			t.Error("somebody else's upgrader would be installed")
		}
		stage.Discard()
		if s.read("devopsAgent") != program("v1") {
			t.Error("the agent was replaced already")
		}
		if err := s.Journal.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.read("devopsAgent") != program("v2") {
			t.Error("the agent was not replaced")
		}
		if ended, err := s.Settle(t.Context(), r.ID); err != nil || ended == nil || ended.State != journal.Settled {
			t.Errorf("settled: %+v, %v", ended, err)
		}
		s.clean()
	}
}

func TestAgentsThatAreNotTaken(t *testing.T) {
	for name, c := range map[string]struct {
		agent string
		check func(error) bool
	}{
		"says nothing":    {"#!/bin/sh\n", func(err error) bool { return errors.Is(err, ErrNoVersion) }},
		"fails":           {"#!/bin/sh\necho v2\nexit 1\n", func(err error) bool { var e *ProgramError; return errors.As(err, &e) }},
		"talks":           {"#!/bin/sh\necho v2\necho and more\n", func(err error) bool { return errors.Is(err, ErrNoVersion) }},
		"another machine": {"\x7fELF\x02\x01\x01junk", func(err error) bool { var e *ProgramError; return errors.As(err, &e) }},
		"empty":           {"", func(err error) bool { return err != nil }},
		"lacks a loader":  {"#!/lib/no-such-interpreter\n", func(err error) bool { var e *ProgramError; return errors.As(err, &e) && e.Hint() != "" }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.put(journal.Agent, c.agent)
			stage := s.prepare(Order{Agent: true})
			if err := s.refused(stage, journal.Agent); !c.check(err) || stage.Any() {
				t.Errorf("refused with %v; brings %s", err, stage)
			}
			s.clean()
			for _, name := range []string{"tmp/devopsAgent", "tmp/upgrader", "tmp/devopsDaemon"} {
				if s.read(name) != "" {
					t.Errorf("%s stays", name)
				}
			}
		})
	}
	s := newSite(t)
	s.put(journal.Agent, program("v1")) // what is here; a daemon alone does not count (statement 85)
	if stage := s.prepare(Order{Agent: true}); stage.Any() || stage.Err() != nil || stage.Same != 1 {
		t.Errorf("the agent that is here: %s, %v, %d", stage, stage.Err(), stage.Same)
	}
}

// TestAJDKWhoseArchiveMakesNothingExecutable works all the same, as with the original, which makes everything executable.
func TestAJDKWhoseArchiveMakesNothingExecutable(t *testing.T) {
	s := newSite(t)
	name := strings.TrimPrefix(unpack.Java("/", runtime.GOOS), "/")
	lib := path.Join(path.Dir(path.Dir(name)), "lib")
	s.put(journal.JDK17, zipWith(t, 0o644, "jdk-17.0.1/", map[string]string{name: java, lib + "/jspawnhelper": "x", lib + "/modules": "x"}))
	stage := s.prepare(Order{JDK17: true})
	if err := stage.Err(); err != nil || !stage.Any() {
		t.Fatalf("refused: %v", err)
	}
	jdks, err := s.Replace(t.Context(), stage, journal.Plan{Kind: journal.FromServer})
	if err != nil || len(jdks) != 1 {
		t.Fatalf("%v, %v", jdks, err)
	}
	for file, want := range map[string]fs.FileMode{name: 0o755, lib + "/jspawnhelper": 0o755, lib + "/modules": 0o644} {
		if info, err := os.Stat(filepath.Join(jdks[0].Dir, file)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
}

// TestABadVersionIsNotTriedAgain unless that is forced.
func TestABadVersionIsNotTriedAgain(t *testing.T) {
	s := newSite(t)
	try := func(force bool) *Stage { return s.prepareFrom(Order{Agent: true}, s.remote, force) }
	stage := try(false)
	if _, err := s.Begin(t.Context(), stage, journal.Plan{Kind: journal.FromServer}); err != nil {
		t.Fatal(err)
	}
	if err := s.Journal.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Journal.Undo("it is bad", journal.Last{}); err != nil {
		t.Fatal(err)
	}
	stage = try(false)
	var bad *BadError
	if err := s.refused(stage, journal.Agent); !errors.As(err, &bad) || !strings.Contains(err.Error(), "it is bad") || bad.Hint() == "" {
		t.Errorf("refused with %v", err)
	}
	if stage = try(true); !stage.Programs() {
		t.Errorf("forced: %v", stage.Err())
	}
	if stage = try(false); !stage.Programs() {
		t.Errorf("after it was forced once: %v", stage.Err())
	}
}

// TestWhatWasRolledBackByHandIsTakenFromAnOperatorOnly, or when it is another version.
func TestWhatWasRolledBackByHandIsTakenFromAnOperatorOnly(t *testing.T) {
	s := newSite(t)
	carryOut := func() {
		t.Helper()
		if err := s.Journal.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Journal.Settle(); err != nil || r.Ended == nil {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	if _, err := s.Begin(t.Context(), s.prepare(Order{Agent: true}), journal.Plan{Kind: journal.FromServer}); err != nil {
		t.Fatal(err)
	}
	carryOut()
	plan, err := s.Journal.Previous("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.BeginPlan(t.Context(), *plan); err != nil {
		t.Fatal(err)
	}
	carryOut()
	if s.read("devopsAgent") != program("v1") {
		t.Fatal("not gone back")
	}
	var left *journal.LeftError
	stage := s.prepare(Order{Agent: true})
	if err := s.refused(stage, journal.Agent); !errors.As(err, &left) || !strings.Contains(err.Error(), "v2 was rolled back by hand") || left.Hint() == "" {
		t.Errorf("refused with %v", err)
	}
	if stage.Programs() || stage.Any() {
		t.Errorf("it brings %s", stage)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "devopsAgent"), []byte(program("v2")), 0o755); err != nil {
		t.Fatal(err)
	}
	from := Directory{Dir: dir, GOOS: runtime.GOOS, GOARCH: runtime.GOARCH}
	if stage := s.prepareFrom(from.Offers(), from, false); !stage.Programs() {
		t.Errorf("an operator's is refused: %v", stage.Err())
	}
	s.put(journal.Agent, program("v3"))
	if stage := s.prepare(Order{Agent: true}); !stage.Programs() {
		t.Errorf("another version is refused: %v", stage.Err())
	}
	s.put(journal.Agent, program("v2"))
	if versions, err := s.Journal.Allow(); err != nil || len(versions) != 1 || versions[0] != "v2" {
		t.Errorf("allowed %v, %v", versions, err)
	}
	if stage := s.prepare(Order{Agent: true}); !stage.Programs() {
		t.Errorf("what is allowed is refused: %v", stage.Err())
	}
}

// sign signs what the remote has of a part.
func (s *site) sign(secret trust.Secret, p journal.Part, claim trust.Claim) {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "file")
	name := RemoteName(p, runtime.GOOS, runtime.GOARCH)
	if err := os.WriteFile(path, s.files[name], 0o600); err != nil {
		s.t.Fatal(err)
	}
	sig, err := trust.Sign(path, secret, claim)
	if err != nil {
		s.t.Fatal(err)
	}
	s.files[name+sigSuffix] = sig
}

func TestSignatures(t *testing.T) {
	key, secret, err := trust.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := trust.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	good := trust.Claim{Name: "worker-agent.jar", Version: "v2.0.0", OS: trust.Any, Arch: trust.Any}
	for name, c := range map[string]struct {
		spoil func(*site)
		want  error
	}{
		"good":      {func(s *site) { s.sign(secret, journal.Worker, good) }, nil},
		"unsigned":  {func(*site) {}, trust.ErrUnsigned},
		"wrong key": {func(s *site) { s.sign(stranger, journal.Worker, good) }, trust.ErrWrongKey},
		"swapped": {func(s *site) {
			s.sign(secret, journal.Worker, trust.Claim{Name: "devopsAgent", Version: "v2.0.0", OS: runtime.GOOS, Arch: runtime.GOARCH})
		}, trust.ErrSwapped},
		"tampered": {func(s *site) { s.sign(secret, journal.Worker, good); s.put(journal.Worker, "v2.0.1\n") }, trust.ErrTampered},
		"truncated": {func(s *site) {
			s.sign(secret, journal.Worker, good)
			n := "jar/worker-agent.jar.minisig"
			s.files[n] = s.files[n][:60]
		}, trust.ErrMalformed},
		"endless": {func(s *site) { s.files["jar/worker-agent.jar.minisig"] = bytes.Repeat([]byte("x"), 1<<20) }, trust.ErrMalformed},
		"older": {func(s *site) {
			s.sign(secret, journal.Worker, good)
			s.write("upgrade/floor.json", `{"floor":{"worker-agent.jar":"v2.0.1"}}`, 0o600)
		}, trust.ErrOlder},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.Policy = trust.Policy{Keys: []trust.Key{key}, Require: true}
			s.write("tmp/worker-agent.jar", "v1.0.0\n", 0o600) // an earlier download, good for mending
			c.spoil(s)
			stage := s.prepare(Order{Worker: true})
			if c.want != nil {
				if err := s.refused(stage, journal.Worker); !errors.Is(err, c.want) {
					t.Errorf("refused with %v, want %v", err, c.want)
				}
				if s.read("tmp/worker-agent.jar") != "v1.0.0\n" || s.read("worker-agent.jar") != "v1.0.0\n" {
					t.Error("the refused jar is where it may be used")
				}
				s.clean()
				return
			}
			if err := stage.Err(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Replace(t.Context(), stage, journal.Plan{Kind: journal.FromServer}); err != nil {
				t.Fatal(err)
			}
			if floor := s.read("upgrade/floor.json"); !strings.Contains(floor, `"worker-agent.jar": "v2.0.0"`) {
				t.Errorf("floor %q", floor)
			}
		})
	}
}

// TestTheFloorRisesWhenAnAgentSettles, and a rollback does not care.
func TestTheFloorRisesWhenAnAgentSettles(t *testing.T) {
	key, secret, err := trust.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	s.Policy = trust.Policy{Keys: []trust.Key{key}, Require: true}
	for _, p := range []journal.Part{journal.Agent, journal.Daemon, journal.Upgrader} {
		s.sign(secret, p, trust.Claim{Name: targetName(p), Version: "v2.0.0", OS: runtime.GOOS, Arch: runtime.GOARCH})
	}
	stage := s.prepare(Order{Agent: true})
	r, err := s.Begin(t.Context(), stage, journal.Plan{Kind: journal.FromServer})
	if err != nil {
		t.Fatal(err, stage.Err())
	}
	if err := s.Journal.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.read("upgrade/floor.json") != "" {
		t.Error("the floor has risen before the trial was over")
	}
	if _, err := s.Settle(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	if floor := s.read("upgrade/floor.json"); !strings.Contains(floor, `"devopsAgent": "v2.0.0"`) {
		t.Errorf("floor %q", floor)
	}
	plan, err := s.Journal.Previous("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.BeginPlan(t.Context(), *plan); err != nil {
		t.Errorf("rollback below the floor: %v", err)
	}
}

func TestSweep(t *testing.T) {
	s := newSite(t)
	s.write("jdk17_1700000001/half", "x", 0o644)
	s.write("jdk_1700000002/bin/java", java, 0o755) // configured
	s.write("jdk17-1700000003/theirs", "x", 0o644)
	s.write("jdk1700000004/theirs", "x", 0o644)
	s.write("tmp/jdk17.zip.part", "x", 0o600)
	s.write("tmp/incoming/devopsAgent.part", "x", 0o600)
	for _, name := range []string{"tmp/jdk17.zip.part", "tmp/incoming/devopsAgent.part"} {
		old := time.Now().Add(-48 * time.Hour)
		if err := os.Chtimes(s.Inst.Path(name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sweep(t.Context(), s.Inst.Path("jdk_1700000002"), s.Inst.Path("jdk17")); err != nil {
		t.Fatal(err)
	}
	for name, stays := range map[string]bool{"jdk17_1700000001": false, "jdk_1700000002": true, "jdk17-1700000003": true, "jdk1700000004": true,
		"jdk17": true, "tmp/jdk17.zip.part": false, "tmp/incoming/devopsAgent.part": false} {
		if _, err := os.Stat(s.Inst.Path(name)); (err == nil) != stays {
			t.Errorf("%s stays: %v, want %v", name, err == nil, stays)
		}
	}
}

func TestTheEndOfAPreparation(t *testing.T) {
	s := newSite(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if _, err := s.Prepare(ctx, Order{Worker: true, JDK17: true}, s.stock(), s.remote, false); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	s.clean()
}

func TestBundles(t *testing.T) {
	name := func(p journal.Part) string { return RemoteName(p, runtime.GOOS, runtime.GOARCH) }
	files := map[string]string{name(journal.Agent): program("v2"), name(journal.Agent) + sigSuffix: "sig", "worker-agent.jar": "v2.0.0\n",
		"jdk17.zip": jdkZip(t, "", nil), "tmp/upgrader": "u", "install.sh": "x", ".agent.properties": "secret"}
	dir := t.TempDir()
	for file, text := range files {
		path := filepath.Join(dir, filepath.FromSlash(file))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	other := t.TempDir()
	put := func(name, text string) string {
		path := filepath.Join(other, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flat := zipOf(t, "", files)
	plain := httptest.NewServer(http.FileServer(http.Dir(other)))
	defer plain.Close()
	secure := httptest.NewTLSServer(http.FileServer(http.Dir(other)))
	defer secure.Close()
	put("agent.zip", flat)
	put("worker-agent.jar", "v2.0.0\n")
	put("worker-agent.jar"+sigSuffix, "sig")
	put("readme.txt", "x")
	all := Order{Agent: true, Worker: true, JDK17: true}
	for _, c := range []struct {
		what, from string
		signed     bool
		want       Order
		err        func(error) bool
	}{
		{"directory", dir, false, all, nil},
		{"zip", put("a.zip", flat), false, all, nil},
		{"zip with a directory", put("b.zip", zipOf(t, "release/", files)), false, all, nil},
		{"jar", put("worker-agent.jar", "v2.0.0\n"), false, Order{Worker: true}, nil},
		{"archive of a JDK", put("jdk17.zip", files["jdk17.zip"]), false, Order{JDK17: true}, nil},
		{"https", secure.URL + "/agent.zip", false, all, nil},
		{"https, one file", secure.URL + "/worker-agent.jar", false, Order{Worker: true}, nil},
		{"http", plain.URL + "/agent.zip", false, Order{}, func(err error) bool { var e *PlainError; return errors.As(err, &e) }},
		{"http with signatures", plain.URL + "/agent.zip", true, all, nil},
		{"https, missing", secure.URL + "/none.zip", false, Order{}, func(err error) bool { var e *fetch.StatusError; return errors.As(err, &e) }},
		{"https, no name", secure.URL + "/", false, Order{}, func(err error) bool { return err != nil }},
		{"missing", filepath.Join(other, "none"), false, Order{}, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }},
		{"no archive", filepath.Join(other, "readme.txt"), false, Order{}, func(err error) bool { return errors.Is(err, unpack.ErrFormat) }},
		{"empty", t.TempDir(), false, Order{}, func(err error) bool { var e *EmptyError; return errors.As(err, &e) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "tmp", "offered")
			b := Bundle{From: c.from, GOOS: runtime.GOOS, GOARCH: runtime.GOARCH, Signed: c.signed, HTTP: secure.Client()}
			err := b.Collect(t.Context(), to)
			if c.err != nil {
				if !c.err(err) {
					t.Errorf("error %v", err)
				}
				if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
					t.Error("something stays")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := (Directory{to, runtime.GOOS, runtime.GOARCH}).Offers(); got != c.want {
				t.Errorf("offers %+v, want %+v", got, c.want)
			}
			var names []string
			entries, _ := os.ReadDir(to)
			for _, entry := range entries {
				names = append(names, entry.Name())
			}
			for _, name := range []string{".agent.properties", "install.sh", "download", "unpacked"} {
				if slices.Contains(names, name) {
					t.Errorf("%s was taken along: %v", name, names)
				}
			}
			if c.want.Agent && (!slices.Contains(names, "upgrader") || !slices.Contains(names, "devopsAgent"+sigSuffix)) {
				t.Errorf("collected %v", names)
			}
			if c.what == "https, one file" && !slices.Contains(names, "worker-agent.jar"+sigSuffix) {
				t.Errorf("collected %v", names)
			}
		})
	}
}

// TestAnUpgradeFromADirectory needs no daemon and no upgrader.
func TestAnUpgradeFromADirectory(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"devopsAgent": program("v3"), "worker-agent.jar": "v3.0.0\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	from := Directory{dir, runtime.GOOS, runtime.GOARCH}
	stage := s.prepareFrom(from.Offers(), from, false)
	if err := stage.Err(); err != nil || !stage.Programs() || stage.Upgrader() != "" || stage.String() != "agent v3, worker v3.0.0" {
		t.Errorf("%v, %s, upgrader %q", err, stage, stage.Upgrader())
	}
	if !s.Policy.Require && len(s.asked) > 0 {
		t.Errorf("a server was asked: %v", s.asked)
	}
	stage.Discard()
	s.clean()
}

func TestVersionHasAnEnd(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hangs")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexec sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, fmt.Errorf("enough"))
	defer cancel()
	begun := time.Now()
	if _, err := Version(ctx, path); err == nil || !strings.Contains(err.Error(), "enough") || time.Since(begun) > 20*time.Second {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
}
