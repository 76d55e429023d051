package controller

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// native is our own worker of a build.
type native struct {
	*machine
	*wire.Session
}

func (m *machine) native(build string) *native {
	m.t.Helper()
	n := &native{m, &wire.Session{Client: m.client, Build: build, VMSeq: "1"}}
	m.start(build)
	return n
}

func (n *native) next() *wire.BuildTask {
	n.t.Helper()
	task, err := n.ClaimTask(n.t.Context(), 0)
	if err != nil {
		n.t.Fatal(err)
	}
	return task
}

// done completes a task, and takes the next one.
func (n *native) done(task *wire.BuildTask, success bool) *wire.BuildTask {
	n.t.Helper()
	n.complete(n.Build, wire.TaskResult{TaskID: *task.TaskID, Success: success})
	return n.next()
}

func sha256Of(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// store offers an archive and sends it if it is wanted.
func (n *native) store(task *wire.BuildTask, data []byte) (sent bool, err error) {
	n.t.Helper()
	var save wire.ArtifactSave
	if err := json.Unmarshal([]byte(task.Params[wire.ParamArtifact]), &save); err != nil {
		n.t.Fatal(err)
	}
	offer := wire.ArtifactOffer{TaskID: *task.TaskID, Name: save.Name, SHA256: sha256Of(data), Size: int64(len(data)), Bytes: int64(len(data)), Entries: 1}
	stored, err := n.OfferArtifact(n.t.Context(), offer)
	if err != nil || stored {
		return false, err
	}
	if err := n.SendArtifact(n.t.Context(), offer.SHA256, offer.Size, bytes.NewReader(data)); err != nil {
		return true, err
	}
	if stored, err = n.OfferArtifact(n.t.Context(), offer); err == nil && !stored {
		err = errors.New("not stored")
	}
	return true, err
}

func (w *world) handed(m *machine) string {
	w.t.Helper()
	got := m.ask(asking(wire.All), 0).Build
	if got == nil {
		w.t.Fatal("no build")
	}
	return got.ID
}

// saved runs a build that saves one artifact.
func (w *world) saved(m *machine, project string, data []byte) (Build, bool) {
	w.t.Helper()
	_, err := w.server.Submit(project, Spec{Steps: []Step{{Script: "x"}}, Artifacts: []ArtifactSpec{{Name: "app", Paths: globs{"x"}}}})
	if err != nil {
		w.t.Fatal(err)
	}
	n := m.native(w.handed(m))
	task := n.done(n.next(), true)
	sent, err := n.store(task, data)
	if err != nil {
		w.t.Fatal(err)
	}
	n.done(task, true)
	n.end(n.Build)
	return w.build(n.Build), sent
}

func stored(dir string) (names []string) {
	entries, _ := os.ReadDir(filepath.Join(dir, "files", artifactBlobs)) // none: nothing is stored
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func onDisk(t *testing.T) Options {
	o := fast()
	o.Dir = t.TempDir()
	return o
}

const producing = `name: chain
jobs:
  make:
    matrix: {os: [one, two]}
    steps: [{script: x}]
    artifacts:
      - {name: same, paths: [dist/**]}
      - {name: "only-${{ matrix.os }}", paths: "out/${{ matrix.os }}", optional: true, keep: 2w}
  use:
    needs: make
    download:
`

func TestWhereDownloadsGo(t *testing.T) {
	for _, c := range []struct {
		download string
		want     []string // "" for an error
		message  string
	}{
		{"make", []string{"artifacts/make/one/same", "artifacts/make/only-one", "artifacts/make/two/same", "artifacts/make/only-two"}, ""},
		{"{from: make, path: in}", []string{"in/one/same", "in/only-one", "in/two/same", "in/only-two"}, ""},
		{"{from: make, name: only-one, path: in}", []string{"in"}, ""},
		{"{from: make, name: same, path: .}", []string{"one", "two"}, ""},
		{"{name: same}", []string{"artifacts/make/one/same", "artifacts/make/two/same"}, ""},
		{"{path: in, name: only-two}", []string{"in/make"}, ""},
		{"[{from: make, name: only-one, path: in}, {from: make, name: only-two, path: in}]", []string{"in", "in"}, ""},
		{"[make, make]", nil, "two artifacts would be put into artifacts/make/one/same"},
		{"other", nil, "other is not in needs"},
		{"{name: none}", nil, "no job in needs saves an artifact none"},
		{"{from: make, path: ../x}", nil, "below the workspace"},
		{"{from: make, path: /x}", nil, "below the workspace"},
		{"{from: make, path: 'c:\\x'}", nil, "below the workspace"},
		{"{what: make}", nil, `unknown key "what"`},
	} {
		f, err := ParseJobs([]byte(producing + "      " + c.download + "\n    steps: [{script: x}]\n"))
		if c.message != "" {
			if err == nil || !strings.Contains(err.Error(), c.message) || !strings.Contains(err.Error(), "line ") && !strings.Contains(c.message, "below") {
				t.Errorf("%s: %v, not %q", c.download, err, c.message)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.download, err)
			continue
		}
		cells, err := f.cells()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, w := range cells[2].wants {
			got = append(got, w.Dir)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, not %q", c.download, got, c.want)
		}
	}
}

func TestArtifactsOfABuildFileAreChecked(t *testing.T) {
	for bad, message := range map[string]string{
		"{name: 'a b', paths: x}":                  "a name of letters",
		"{name: .., paths: x}":                     "a name of letters",
		"{name: a., paths: x}":                     "a name of letters",
		"{name: a}":                                "paths: between 1",
		"{name: a, paths: ../x}":                   "leads out of the workspace",
		"{name: a, paths: /x}":                     "below the workspace",
		"{name: a, paths: x, exclude: '[a'}":       "a [ in it has no end",
		"{name: a, paths: '!x'}":                   "into exclude",
		"{name: a, paths: 'x/${{ VERSION }}'}":     "only ${{ matrix.NAME }}",
		"{name: a, paths: x, keep: soon}":          "write 7d",
		"{name: a, paths: x, keep: 0d}":            "write 7d",
		"{name: a, paths: x, keep: 99999d}":        "write 7d",
		"{name: a, paths: x, when: never}":         "on_success, on_failure or always",
		"{name: a, paths: x, path: y}":             `unknown key "path"`,
		"{name: a, paths: x}, {name: A, paths: x}": "is there twice",
	} {
		_, err := ParseSpec([]byte("steps: [{script: x}]\nartifacts: [" + bad + "]\n"))
		if err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v, not %q", bad, err, message)
		}
	}
	spec, err := ParseSpec([]byte("steps: [{script: x}]\nartifacts: [{name: a, paths: [x, y/**], keep: 1w2d12h}]\n"))
	if err != nil || time.Duration(spec.Artifacts[0].Keep) != (9*24+12)*time.Hour {
		t.Errorf("%+v %v", spec.Artifacts, err)
	}
	var again Spec
	if err := json.Unmarshal([]byte(jsonText(spec)), &again); err != nil || again.Artifacts[0].Keep != spec.Artifacts[0].Keep {
		t.Errorf("written and read again: %+v %v", again.Artifacts, err)
	}
}

// FuzzParseKeepFor: what is accepted is a time that is not too long, and is written so that it is read again.
func FuzzParseKeepFor(f *testing.F) {
	f.Add("7d")
	f.Add("1w2d12h30m")
	f.Add("99999999999999999999w")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseKeepFor(text)
		if err != nil {
			return
		}
		again, err := ParseKeepFor(time.Duration(k).String())
		if err != nil || again != k || k <= 0 || time.Duration(k) > maxKeep {
			t.Errorf("%q is %v, and that is %v %v", text, k, again, err)
		}
	})
}

// TestArtifactsGoFromJobToJob: two cells save, one of them also something else, and the next job is told what to get and
// gets it.
func TestArtifactsGoFromJobToJob(t *testing.T) {
	o := onDisk(t)
	w := serve(t, o)
	m := w.imported(NewAgent{})
	w.saved(m, "", []byte("secret"))
	r := w.submitRun(producing + "      make\n    steps: [{script: x}]\n")
	for _, data := range []string{"first", "second"} {
		n := m.native(w.handed(m))
		task := n.done(n.next(), true)
		if sent, err := n.store(task, []byte(data)); err != nil || !sent {
			t.Fatalf("%t %v", sent, err)
		}
		if sent, err := n.store(task, []byte(data)); err != nil || sent {
			t.Errorf("the same again: sent %t, %v", sent, err)
		}
		task = n.done(task, true)
		if data == "second" {
			if _, err := n.store(task, []byte("other")); err != nil {
				t.Fatal(err)
			}
		}
		n.done(task, true)
		n.end(n.Build)
	}
	n := m.native(w.handed(m))
	task := n.next()
	var get wire.ArtifactGet
	if err := json.Unmarshal([]byte(task.Params[wire.ParamArtifact]), &get); err != nil || *task.Type != wire.TaskArtifactGet {
		t.Fatalf("%v %+v", err, task)
	}
	if len(get.Items) != 3 || len(get.Missing) != 1 || get.Items[0].Dir != "artifacts/make/one/same" || !get.Items[0].Replace || get.Items[2].Dir != "artifacts/make/only-two" {
		t.Fatalf("%+v", get)
	}
	for i, want := range []string{"first", "second", "other"} {
		var got bytes.Buffer
		if err := n.FetchArtifact(t.Context(), get.Items[i].SHA256, get.Items[i].Size, &got); err != nil || got.String() != want {
			t.Errorf("%d: %q %v", i, got.String(), err)
		}
	}
	if err := n.FetchArtifact(t.Context(), sha256Of([]byte("secret")), 6, io.Discard); err == nil {
		t.Error("fetched what this build does not get")
	}
	n.done(n.done(task, true), true)
	n.end(n.Build)
	if got := w.states(r.ID); got[""] != Succeeded {
		t.Errorf("%v", got)
	}
	if err := n.FetchArtifact(t.Context(), get.Items[0].SHA256, get.Items[0].Size, io.Discard); !errors.Is(err, wire.BuildEnded) {
		t.Errorf("after the end: %v", err)
	}
	list, err := w.server.NewestArtifacts(r.ID, 0)
	if err != nil || len(list) != 3 || list[2].Name != "only-two" || list[2].ExpiresAt != list[2].SavedAt+14*24*3600*1000 {
		t.Errorf("%+v %v", list, err)
	}
}

// TestAnOriginalWorkerSeesNothingOfArtifacts: a worker that does not say that it can gets scripts only; the step fails
// and says why.
func TestAnOriginalWorkerSeesNothingOfArtifacts(t *testing.T) {
	w := serve(t, onDisk(t))
	m := w.imported(NewAgent{})
	w.submit(Spec{Steps: []Step{{Script: "x"}}, Artifacts: []ArtifactSpec{{Name: "app", Paths: globs{"x"}}, {Name: "log", Paths: globs{"x"}, When: Always}}})
	id := w.handed(m)
	m.run(id, func(task wire.BuildTask) wire.TaskResult {
		if *task.Type != wire.TaskLinuxScript {
			t.Errorf("a task of type %s", *task.Type)
		}
		return wire.TaskResult{Success: true}
	})
	b := w.build(id)
	if b.State != Failed || !strings.Contains(b.Message, "devopsWorker") || b.Steps[0].State != Succeeded || b.Steps[2].State != Failed {
		t.Errorf("%s %q %+v", b.State, b.Message, b.Steps)
	}
}

func TestWhenArtifactsAreSaved(t *testing.T) {
	all := []ArtifactSpec{{Name: "good", Paths: globs{"x"}}, {Name: "bad", Paths: globs{"x"}, When: OnFailure}, {Name: "any", Paths: globs{"x"}, When: Always}}
	for success, want := range map[bool]string{true: "good any ", false: "bad any "} {
		w := serve(t, onDisk(t))
		m := w.imported(NewAgent{})
		w.submit(Spec{Steps: []Step{{Script: "x"}}, Artifacts: all})
		n := m.native(w.handed(m))
		task, got := n.done(n.next(), success), ""
		for task.Status == wire.TaskDo {
			if _, err := n.store(task, []byte("data")); err != nil {
				t.Fatal(err)
			}
			task = n.done(task, true)
		}
		n.end(n.Build)
		b := w.build(n.Build)
		for _, a := range b.Artifacts {
			got += a.Name + " "
		}
		if got != want || (b.State == Succeeded) != success {
			t.Errorf("steps succeeded %t: saved %s, %s %s", success, got, b.State, b.Message)
		}
	}
}

func TestArtifactLimitsAreNamed(t *testing.T) {
	o := onDisk(t)
	o.ArtifactBytes, o.BuildArtifactBytes, o.AllArtifactBytes = 100, 150, 170
	w := serve(t, o)
	m := w.imported(NewAgent{})
	w.submit(Spec{Steps: []Step{{Script: "x"}}, Artifacts: []ArtifactSpec{{Name: "one", Paths: globs{"x"}}, {Name: "two", Paths: globs{"x"}}}})
	n := m.native(w.handed(m))
	task := n.done(n.next(), true)
	fails := func(size int, limit string) {
		t.Helper()
		var status *wire.StatusError
		_, err := n.store(task, bytes.Repeat([]byte("x"), size))
		if !errors.As(err, &status) || !strings.Contains(status.Message, limit) {
			t.Errorf("%d bytes: %v, which does not name %s", size, err, limit)
		}
	}
	fails(101, "--artifact-max")
	if _, err := n.store(task, bytes.Repeat([]byte("x"), 100)); err != nil {
		t.Fatal(err)
	}
	task = n.done(task, true)
	fails(51, "--build-artifacts-max")
	if got := stored(o.Dir); len(got) != 1 {
		t.Errorf("stored: %q", got)
	}
	n.done(task, false)
	n.end(n.Build)
	// All together: what is over makes room, what is under way does not.
	w.submit(Spec{Steps: []Step{{Script: "x"}}, Artifacts: []ArtifactSpec{{Name: "one", Paths: globs{"x"}}, {Name: "two", Paths: globs{"x"}}}})
	before := n.Build
	n = m.native(w.handed(m))
	task = n.done(n.next(), true)
	if _, err := n.store(task, bytes.Repeat([]byte("y"), 90)); err != nil {
		t.Fatal(err)
	}
	if a := w.build(before).Artifacts[0]; !a.Gone {
		t.Errorf("the oldest was not removed: %+v", a)
	}
	done, err := w.server.artifacts.reserve(sha256Of(nil), 50, 170)
	if err != nil {
		t.Fatal(err)
	}
	task = n.done(task, true)
	fails(40, "--artifacts-total")
	done()
	if _, err := n.store(task, bytes.Repeat([]byte("z"), 40)); err != nil {
		t.Errorf("there is room again: %v", err)
	}
}

// TestAnArchiveMustBeWhatWasOffered: other bytes, more or fewer, an archive that was not offered, and one that only
// another project has.
func TestAnArchiveMustBeWhatWasOffered(t *testing.T) {
	o := onDisk(t)
	w := serve(t, o)
	m, other := w.imported(NewAgent{}), w.imported(NewAgent{Project: "other"})
	w.submit(Spec{Steps: []Step{{Script: "x"}}, Artifacts: []ArtifactSpec{{Name: "app", Paths: globs{"x"}}}})
	n := m.native(w.handed(m))
	task := n.done(n.next(), true)
	data := []byte("the archive")
	if err := n.SendArtifact(t.Context(), sha256Of(data), int64(len(data)), bytes.NewReader(data)); err == nil {
		t.Error("sent what was not offered")
	}
	offer := wire.ArtifactOffer{TaskID: *task.TaskID, Name: "app", SHA256: sha256Of(data), Size: int64(len(data)), Bytes: 1, Entries: 1}
	if is, err := n.OfferArtifact(t.Context(), offer); err != nil || is {
		t.Fatal(is, err)
	}
	for _, wrong := range []string{"the ARCHIVE", "the", "the archive and more"} {
		if err := n.SendArtifact(t.Context(), offer.SHA256, int64(len(wrong)), strings.NewReader(wrong)); err == nil {
			t.Errorf("%q is taken for it", wrong)
		}
	}
	if is, err := n.OfferArtifact(t.Context(), offer); err != nil || is || len(stored(o.Dir)) != 0 {
		t.Errorf("%t %v %q", is, err, stored(o.Dir))
	}
	for what, change := range map[string]func(*wire.ArtifactOffer){
		"another name": func(a *wire.ArtifactOffer) { a.Name = "other" },
		"another task": func(a *wire.ArtifactOffer) { a.TaskID = "e-1" },
		"no digest":    func(a *wire.ArtifactOffer) { a.SHA256 = "../../etc/passwd" },
		"no size":      func(a *wire.ArtifactOffer) { a.Size = -1 },
	} {
		bad := offer
		change(&bad)
		if _, err := n.OfferArtifact(t.Context(), bad); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	if sent, err := n.store(task, data); err != nil || !sent {
		t.Fatal(sent, err)
	}
	n.done(task, true)
	n.end(n.Build)
	if _, sent := w.saved(other, "other", data); !sent {
		t.Error("another project got it without having it")
	}
	if _, sent := w.saved(m, "", data); sent {
		t.Error("the same project had to send it again")
	}
	if got := stored(o.Dir); len(got) != 1 {
		t.Errorf("the same content is stored as %q", got)
	}
}

// TestArtifactsAreRemoved: by their own time, by that of the controller, with their builds, and by hand; an archive goes
// with the last that names it, and never while a build is about to name it, or to get it.
func TestArtifactsAreRemoved(t *testing.T) {
	o := onDisk(t)
	o.KeepArtifacts, o.KeepBuilds = 48*time.Hour, 96*time.Hour
	w := serve(t, o)
	m := w.imported(NewAgent{})
	first, _ := w.saved(m, "", []byte("one"))
	second, _ := w.saved(m, "", []byte("one"))
	third, _ := w.saved(m, "", []byte("three"))
	if err := w.server.RemoveArtifact(t.Context(), first.ID, "app"); err != nil {
		t.Fatal(err)
	}
	if got := stored(o.Dir); len(got) != 2 {
		t.Errorf("the second has it still: %q", got)
	}
	if err := w.server.RemoveArtifact(t.Context(), second.ID, "app"); err != nil {
		t.Fatal(err)
	}
	if got := stored(o.Dir); !slices.Equal(got, []string{sha256Of([]byte("three"))}) {
		t.Errorf("nobody has it: %q", got)
	}
	if b := w.build(first.ID); !b.Artifacts[0].Gone {
		t.Errorf("%+v", b.Artifacts)
	}
	if err := w.server.RemoveArtifact(t.Context(), first.ID, "app"); !errors.Is(err, ErrNotFound) {
		t.Errorf("twice: %v", err)
	}
	// One on its way, with nothing that names it yet.
	w.submit(Spec{Steps: []Step{{Script: "x"}}, Artifacts: []ArtifactSpec{{Name: "app", Paths: globs{"x"}}}})
	n := m.native(w.handed(m))
	task := n.done(n.next(), true)
	data := []byte("coming")
	offer := wire.ArtifactOffer{TaskID: *task.TaskID, Name: "app", SHA256: sha256Of(data), Size: 6, Bytes: 6, Entries: 1}
	if _, err := n.OfferArtifact(t.Context(), offer); err != nil {
		t.Fatal(err)
	}
	if err := n.SendArtifact(t.Context(), offer.SHA256, 6, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if err := w.server.prune(t.Context(), time.Now()); err != nil || len(stored(o.Dir)) != 2 {
		t.Errorf("%v %q", err, stored(o.Dir))
	}
	nobody := func() (bool, error) { return false, nil }
	if err := w.server.artifacts.drop(offer.SHA256, time.Now(), nobody); err != nil || len(stored(o.Dir)) != 2 {
		t.Errorf("%v %q", err, stored(o.Dir))
	}
	if is, err := n.OfferArtifact(t.Context(), offer); err != nil || !is {
		t.Errorf("%t %v", is, err)
	}
	// Too old: all but those of what is under way.
	if err := w.server.prune(t.Context(), time.Now().Add(49*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := stored(o.Dir); !slices.Equal(got, []string{sha256Of(data)}) || !w.build(third.ID).Artifacts[0].Gone {
		t.Errorf("%q", got)
	}
	n.done(task, true)
	n.end(n.Build)
	if err := w.server.prune(t.Context(), time.Now().Add(97*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := stored(o.Dir); len(got) != 0 || w.count(`SELECT count(*) FROM artifact`) != 0 || w.server.artifacts.used() != 0 {
		t.Errorf("%q, %d bytes", got, w.server.artifacts.used())
	}
}

// TestArtifactsGoWithTheirBuilds when nothing else removes them.
func TestArtifactsGoWithTheirBuilds(t *testing.T) {
	o := onDisk(t)
	o.KeepBuilds = 96 * time.Hour
	w := serve(t, o)
	w.saved(w.imported(NewAgent{}), "", []byte("one"))
	if err := w.server.prune(t.Context(), time.Now().Add(95*time.Hour)); err != nil || len(stored(o.Dir)) != 1 {
		t.Errorf("%v %q", err, stored(o.Dir))
	}
	if err := w.server.prune(t.Context(), time.Now().Add(97*time.Hour)); err != nil || len(stored(o.Dir)) != 0 || w.count(`SELECT count(*) FROM artifact`) != 0 {
		t.Errorf("%v %q", err, stored(o.Dir))
	}
}

// TestArtifactsOutliveARestart, and what was on its way does not.
func TestArtifactsOutliveARestart(t *testing.T) {
	o := onDisk(t)
	var b Build
	t.Run("before", func(t *testing.T) {
		w := serve(t, o)
		b, _ = w.saved(w.imported(NewAgent{}), "", []byte("one"))
	})
	left := filepath.Join(o.Dir, "files", artifactBlobs, uploadPrefix+"0123")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	report, err := Check(t.Context(), o.Dir)
	if err != nil || len(report.Faults) != 0 {
		t.Errorf("%+v %v", report, err)
	}
	archive := filepath.Join(o.Dir, "files", artifactBlobs, sha256Of([]byte("one")))
	for wrong, change := range map[string]func() error{
		"not 3 and":    func() error { return os.WriteFile(archive, []byte("two"), 0o600) },
		"no such file": func() error { return os.Rename(archive, archive+".away") },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		report, err := Check(t.Context(), o.Dir)
		if err != nil || len(report.Faults) != 1 || !strings.Contains(report.Faults[0], "artifact app of build #1") {
			t.Errorf("%s: %+v %v", wrong, report, err)
		}
		_ = os.Rename(archive+".away", archive) // it is where it was in the first case
		if err := os.WriteFile(archive, []byte("one"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := serve(t, o)
	if _, err := os.Stat(left); err == nil {
		t.Error("half an archive is left")
	}
	if got := w.build(b.ID).Artifacts; len(got) != 1 || w.server.artifacts.used() != 3 {
		t.Errorf("%+v, %d bytes", got, w.server.artifacts.used())
	}
	if err := w.server.removalOf(t.Context()).archives(time.Now()); err != nil || len(stored(o.Dir)) != 1 {
		t.Errorf("%v %q", err, stored(o.Dir))
	}
}

// TestArtifactsForPeople: lists and downloads, for readers too; what a browser gets is a file, whatever is in it.
func TestArtifactsForPeople(t *testing.T) {
	w := serve(t, onDisk(t))
	m := w.imported(NewAgent{})
	w.submit(Spec{Name: "<b>\"x\"; nightly", Steps: []Step{{Script: "x"}}, Artifacts: []ArtifactSpec{{Name: "app", Paths: globs{"x"}}}})
	n := m.native(w.handed(m))
	task := n.done(n.next(), true)
	if _, err := n.store(task, []byte("<script>alert(1)</script>")); err != nil {
		t.Fatal(err)
	}
	path := "/builds/" + n.Build + "/artifacts"
	reader, _ := w.token(NewAccessToken{Name: "wall"})
	for _, list := range []string{path, "/artifacts"} {
		if code, text := w.as(reader, "GET", list, nil); code != 200 || !strings.Contains(text, `"sha256":"`+sha256Of([]byte("<script>alert(1)</script>"))) {
			t.Errorf("%s: %d %s", list, code, text)
		}
	}
	r := w.call("GET", "/api/v1"+path+"/app", http.Header{"Authorization": {"Bearer " + reader}}, nil)
	h := r.header
	if r.code != 200 || string(r.body) != "<script>alert(1)</script>" || h.Get("Content-Type") != "application/gzip" || h.Get("X-Content-Type-Options") != "nosniff" ||
		h.Get("Content-Disposition") != "attachment; filename=_b__x___nightly-1-app.tar.gz" {
		t.Errorf("%d %s %v", r.code, r.body, h)
	}
	part := w.call("GET", "/api/v1"+path+"/app", http.Header{"Authorization": {"Bearer " + reader}, "Range": {"bytes=1-6"}}, nil)
	if part.code != 206 || string(part.body) != "script" {
		t.Errorf("%d %s", part.code, part.body)
	}
	if code, _ := w.as(reader, "GET", path+"/none", nil); code != 404 {
		t.Errorf("none: %d", code)
	}
	if code, _ := w.as(reader, "DELETE", path+"/app", nil); code != 403 {
		t.Errorf("a reader removes: %d", code)
	}
	if code, text := w.as(string(w.server.Token()), "DELETE", path+"/app", nil); code != 400 {
		t.Errorf("removed from a build under way: %d %s", code, text)
	}
	n.done(task, true)
	n.end(n.Build)
	if code, text := w.as(string(w.server.Token()), "DELETE", path+"/app", nil); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	if code, text := w.as(reader, "GET", path+"/app", nil); code != 404 || !strings.Contains(text, "was removed") {
		t.Errorf("%d %s", code, text)
	}
}

// TestAFullDiskFailsTheStep: the worker hears what is wrong with the controller's disk, also when it is still sending, and
// does not try again; what was written goes.
func TestAFullDiskFailsTheStep(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a system where a folder that is in use can be removed")
	}
	o := onDisk(t)
	w := serve(t, o)
	m := w.imported(NewAgent{})
	w.submit(Spec{Steps: []Step{{Script: "x"}}, Artifacts: []ArtifactSpec{{Name: "app", Paths: globs{"x"}}}})
	n := m.native(w.handed(m))
	task := n.done(n.next(), true)
	store := filepath.Join(o.Dir, "files", artifactBlobs)
	if err := os.RemoveAll(store); err != nil {
		t.Fatal(err)
	}
	var status *wire.StatusError
	_, err := n.store(task, bytes.Repeat([]byte("x"), 5<<20)) // more than net/http reads of what nobody wants
	if !errors.As(err, &status) || status.HTTP != http.StatusInsufficientStorage || !strings.Contains(status.Message, "the controller cannot store it") {
		t.Errorf("%v", err)
	}
	if used := w.server.artifacts.used(); used != 0 {
		t.Errorf("%d bytes are taken", used)
	}
}

// TestABrokenTransferLeavesNothing: a worker that vanishes while it sends leaves no file, and takes no room.
func TestABrokenTransferLeavesNothing(t *testing.T) {
	o := onDisk(t)
	w := serve(t, o)
	m := w.imported(NewAgent{})
	w.submit(Spec{Steps: []Step{{Script: "x"}}, Artifacts: []ArtifactSpec{{Name: "app", Paths: globs{"x"}}}})
	n := m.native(w.handed(m))
	task := n.done(n.next(), true)
	data := bytes.Repeat([]byte("x"), 1<<20)
	offer := wire.ArtifactOffer{TaskID: *task.TaskID, Name: "app", SHA256: sha256Of(data), Size: int64(len(data)), Bytes: 1, Entries: 1}
	if _, err := n.OfferArtifact(t.Context(), offer); err != nil {
		t.Fatal(err)
	}
	ctx, cut := context.WithCancel(t.Context())
	half := io.MultiReader(bytes.NewReader(data[:1<<19]), readerFunc(func([]byte) (int, error) { cut(); <-ctx.Done(); return 0, ctx.Err() }))
	if err := n.SendArtifact(ctx, offer.SHA256, offer.Size, half); err == nil {
		t.Error("half an archive is taken for a whole one")
	}
	deadline := time.After(20 * time.Second)
	for len(stored(o.Dir)) > 0 || w.server.artifacts.used() > 0 { // the controller notices by and by
		select {
		case <-deadline:
			t.Fatalf("left: %q, %d bytes", stored(o.Dir), w.server.artifacts.used())
		case <-time.After(10 * time.Millisecond):
		}
	}
	if sent, err := n.store(task, data); err != nil || !sent {
		t.Errorf("the next attempt: %t %v", sent, err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestArtifactsInABackup: they are part of one with files; after one without, what is missing is said.
func TestArtifactsInABackup(t *testing.T) {
	o := onDisk(t)
	w := serve(t, o)
	b, _ := w.saved(w.imported(NewAgent{}), "", []byte("one"))
	for files, faults := range map[bool]int{true: 0, false: 1} {
		dir := t.TempDir()
		restored(t, backupOf(t, w.server, files), dir, RestoreOptions{})
		report, err := Check(t.Context(), dir)
		if err != nil || len(report.Faults) != faults {
			t.Errorf("files %t: %+v %v", files, report.Faults, err)
		}
		s := reopened(t, dir)
		_, a, err := s.findArtifact(b.ID, "app")
		if err != nil {
			t.Fatal(err)
		}
		f, err := s.artifacts.open(a.SHA256)
		if files == errors.Is(err, ErrNotFound) {
			t.Errorf("files %t: %v", files, err)
		}
		if err == nil {
			_ = f.Close()
		}
	}
}

func TestAControllerWithoutADiskTakesNoArtifacts(t *testing.T) {
	w := serve(t, fast())
	if _, err := w.server.Submit("", Spec{Steps: []Step{{Script: "x"}}, Artifacts: []ArtifactSpec{{Name: "app", Paths: globs{"x"}}}}); err == nil || !strings.Contains(err.Error(), "no data directory") {
		t.Errorf("%v", err)
	}
	if _, err := w.server.Submit("", Spec{Steps: []Step{{Script: "x"}}, Download: []Download{{From: "a"}}}); err == nil {
		t.Error("a build for itself gets artifacts of others")
	}
}

// removalOf is one prune.
func (s *Server) removalOf(ctx context.Context) *removal { return &removal{server: s, ctx: ctx} }
