package worker

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func TestPatternsMatchNamesAndWhatIsBelowThem(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"dist/**", "dist/a/b", true},
		{"dist/**", "dist", true},
		{"dist/**", "distant", false},
		{"dist", "dist/a/b", true},
		{"dist/*", "dist/a/b", true}, // below a folder that matches
		{"dist/*.txt", "dist/a/b.txt", false},
		{"**/*.txt", "b.txt", true},
		{"**/*.txt", "a/c/b.txt", true},
		{"a/**/z", "a/z", true},
		{"a/**/z", "a/b/c/z", true},
		{"a/**/z", "a/b/c", false},
		{"**", ".hidden", true},
		{".", "anything", true},
		{"[a-c]?/x", "b1/x", true},
		{"[a-c]?/x", "d1/x", false},
		{"./out/", "out/x", true},
		{"**/**/**/a", "x/y", false},
	} {
		p, err := parsePattern(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
		} else if got := p.matches(c.name); got != c.want {
			t.Errorf("%s and %s: %v", c.pattern, c.name, got)
		}
	}
	for _, bad := range []string{"", "/etc", "../x", "a/../b", `a\b`, "a/[", "a\x00"} {
		if _, err := parsePattern(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// FuzzPatterns: a pattern that is accepted looks only below the workspace, matches what it names, and takes no time to
// speak of.
func FuzzPatterns(f *testing.F) {
	f.Add("dist/**", "dist/a")
	f.Add("**/**/*a*/[a-z]?/**", "a/b/c/d")
	f.Add(strings.Repeat("**/a*/", 100), strings.Repeat("ab/", 100))
	f.Fuzz(func(t *testing.T, text, name string) {
		p, err := parsePattern(text)
		if err != nil {
			return
		}
		if base := p.base(); !filepath.IsLocal(filepath.FromSlash(base)) {
			t.Errorf("%q begins at %q", text, base)
		}
		p.matches(name)
		if !strings.ContainsAny(text, `*?[`) && strings.Trim(text, "./") != "" && !slices.Contains(p, anyDepth) && !p.matches(strings.Join(p, "/")+"/below") {
			t.Errorf("%q does not match itself", text)
		}
	})
}

// FuzzArtifactTasks: what a server sends as a task leads to nothing outside of the workspace.
func FuzzArtifactTasks(f *testing.F) {
	f.Add(`{"name":"app","paths":["dist/**"],"exclude":["x"],"maxBytes":1,"maxEntries":2}`)
	f.Add(`{"items":[{"title":"app","sha256":"` + strings.Repeat("a", 64) + `","size":1,"bytes":1,"entries":1,"dir":"artifacts/a","replace":true}],"missing":["x"]}`)
	f.Add(`{"items":[{"sha256":"` + strings.Repeat("0", 64) + `","size":1,"dir":"..","replace":true}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		if save, err := decodeSave(text); err == nil {
			if !fileName(save.Name) || len(save.Paths) == 0 {
				t.Errorf("%+v", save)
			}
		}
		get, err := decodeGet(text)
		if err != nil {
			return
		}
		for _, item := range get.Items {
			if !filepath.IsLocal(filepath.FromSlash(item.Dir)) || item.Replace && item.Dir == "." || len(item.SHA256) != 64 {
				t.Errorf("%+v", item)
			}
		}
	})
}

// tree writes files below a new workspace; a name that ends with a slash is a folder.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if strings.HasSuffix(name, "/") {
			err = errors.Join(err, os.MkdirAll(path, 0o755))
		} else {
			err = errors.Join(err, os.WriteFile(path, []byte(content), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func save(paths ...string) wire.ArtifactSave {
	return wire.ArtifactSave{Name: "a", Paths: paths, MaxBytes: 1 << 20, MaxEntries: 100}
}

func namesIn(t *testing.T, archive []byte) (names []string) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.IsZero() && h.ModTime.Unix() != 0 || h.Uname != "" || h.Uid != 0 {
			t.Errorf("%s says when or by whom it was made: %+v", h.Name, h)
		}
		names = append(names, h.Name)
	}
}

func TestPackIsTheSameForTheSameFiles(t *testing.T) {
	files := map[string]string{"dist/b": "b", "dist/a/x": "xx", "dist/empty/": "", "other": "o", "dist/skip.tmp": "s"}
	var first []byte
	for range 2 {
		s := save("dist/**", "dist/b", "other")
		s.Exclude = []string{"**/*.tmp"}
		var out bytes.Buffer
		made, err := pack(t.Context(), tree(t, files), s, &out)
		if err != nil {
			t.Fatal(err)
		}
		if got := namesIn(t, out.Bytes()); !slices.Equal(got, []string{"dist/", "dist/a/", "dist/a/x", "dist/b", "dist/empty/", "other"}) {
			t.Errorf("%q", got)
		}
		sum := sha256.Sum256(out.Bytes())
		if made.digest != hex.EncodeToString(sum[:]) || made.size != int64(out.Len()) || made.files != 3 || made.entries != 6 || made.bytes != 4 {
			t.Errorf("%+v", made)
		}
		if first != nil && !bytes.Equal(first, out.Bytes()) {
			t.Error("another archive of the same files")
		}
		first = out.Bytes()
	}
}

func TestPackKeepsItsLimits(t *testing.T) {
	dir := tree(t, map[string]string{"a": "aaaa", "b": "bbbb", "c": "c"})
	for name, c := range map[string]struct {
		change func(*wire.ArtifactSave)
		want   string
	}{
		"bytes":   {func(s *wire.ArtifactSave) { s.MaxBytes = 8 }, "more than 8 bytes"},
		"entries": {func(s *wire.ArtifactSave) { s.MaxEntries = 2 }, "more than 2 files"},
		"missing": {func(s *wire.ArtifactSave) { s.Paths = append(s.Paths, "none/*") }, "matches none/*"},
	} {
		s := save("*")
		c.change(&s)
		if _, err := pack(t.Context(), dir, s, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := save("*", "none/*")
	s.Optional = true
	if made, err := pack(t.Context(), dir, s, io.Discard); err != nil || made.files != 3 || !slices.Equal(made.unmatched, []string{"none/*"}) {
		t.Errorf("optional: %+v %v", made, err)
	}
	s = save("*")
	s.MaxBytes = 9
	if made, err := pack(t.Context(), dir, s, io.Discard); err != nil || made.bytes != 9 {
		t.Errorf("exactly as much as may be: %+v %v", made, err)
	}
	ended, stop := context.WithCancelCause(t.Context())
	stop(errCancelled)
	if _, err := pack(ended, dir, save("*"), io.Discard); !errors.Is(err, errCancelled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Nothing that lies outside of the workspace gets into an archive, whatever leads there.
func TestPackDoesNotLeaveTheWorkspace(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a system where everybody may make symbolic links")
	}
	outside := tree(t, map[string]string{"secret": "s"})
	dir := tree(t, map[string]string{"in/x": "x"})
	if err := errors.Join(os.Symlink(outside, filepath.Join(dir, "out")), os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "in", "leak"))); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := pack(t.Context(), dir, save("**"), &out); err != nil {
		t.Fatal(err)
	}
	if got := namesIn(t, out.Bytes()); !slices.Equal(got, []string{"in/", "in/leak", "in/x", "out"}) {
		t.Errorf("links are to stay links: %q", got)
	}
	out.Reset()
	if made, err := pack(t.Context(), dir, save("out/secret"), &out); err == nil {
		t.Errorf("packed %+v through a link", made)
	}
}

func TestPlaceReplacesOrMerges(t *testing.T) {
	dir := tree(t, map[string]string{"fresh/a": "new", "fresh/sub/b": "b", "in/a": "old", "in/mine": "mine", "in/sub/c": "c"})
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	content := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return "-"
		}
		return string(data)
	}
	if err := place(root, "fresh", "in", false); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"in/a": "new", "in/mine": "mine", "in/sub/b": "b", "in/sub/c": "c"} {
		if got := content(name); got != want {
			t.Errorf("merged: %s is %q, not %q", name, got, want)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "again"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "again", "z"), []byte("z"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := place(root, "again", "in", true); err != nil {
		t.Fatal(err)
	}
	if content("in/z") != "z" || content("in/mine") != "-" {
		t.Errorf("replaced: %q %q", content("in/z"), content("in/mine"))
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "new", "z"), 0o755), os.WriteFile(filepath.Join(dir, "new", "z", "y"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := place(root, "new", "in", false); err == nil {
		t.Error("a folder took the place of a file")
	}
}

// artifactTask is a task of our controller.
func artifactTask(id, kind, param string) wire.BuildTask {
	once := 1
	return wire.BuildTask{Build: buildID(), VMSeq: "1", Status: wire.TaskDo, ExecuteCount: &once, TaskID: &id, ElementID: &id, StepID: &id, Type: &kind,
		Params: map[string]string{wire.ParamArtifact: param, "additionalOptions": `{"timeout":0}`}}
}

// A connection that is cut while an archive is on its way costs nothing but time: it is offered and sent again.
func TestSaveArtifactSendsAgain(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell")
	}
	b := newBackend(t, shell("t1", "mkdir -p dist; echo hello >dist/x"),
		artifactTask("t2", wire.TaskArtifactSave, `{"name":"app","paths":["dist/**"],"maxBytes":100,"maxEntries":10}`))
	var sent []byte
	b.odd = func(op string, n int, c call) *answer {
		switch {
		case op == "artifacts" && n <= 2: // before the first attempt, and the second
			return &answer{200, `{"status":0,"data":{"stored":false}}`}
		case op == "artifacts":
			return &answer{200, `{"status":0,"data":{"stored":true}}`}
		case len(op) == 64 && n == 1:
			return &answer{}
		case len(op) == 64:
			sent = c.body
		}
		return nil
	}
	got := b.run(t)
	if r := b.result(t, 1); got.code != 0 || !r.Success {
		t.Fatalf("%d %v %v\n%s", got.code, got.err, r.Message, b.log(""))
	}
	digest := b.of("artifacts")[2]
	sum := sha256.Sum256(sent)
	if !strings.Contains(string(digest.body), hex.EncodeToString(sum[:])) || !slices.Equal(namesIn(t, sent), []string{"dist/", "dist/x"}) {
		t.Errorf("offered %s, sent %d bytes", digest.body, len(sent))
	}
	for _, c := range b.of("claim") {
		if c.header.Get(wire.HeaderWorkerCan) != wire.CanArtifacts {
			t.Error("a claim that does not say what this worker can")
		}
	}
	if left, _ := filepath.Glob(filepath.Join(got.dir, "build_tmp", "devops_artifact_*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// What the server says against an artifact is the step's message, at once.
func TestSaveArtifactIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell")
	}
	b := newBackend(t, shell("t1", "echo hello >x"), artifactTask("t2", wire.TaskArtifactSave, `{"name":"app","paths":["x"],"maxBytes":100,"maxEntries":10}`))
	b.odd = func(op string, _ int, _ call) *answer {
		if op == "artifacts" {
			return &answer{507, `{"status":507,"errorCode":507,"message":"all artifacts have 20 GB"}`}
		}
		return nil
	}
	b.run(t)
	r := b.result(t, 1)
	if r.Success || *r.Message != "save artifact app: all artifacts have 20 GB" || b.count("artifacts") != 1 {
		t.Errorf("%v %q after %d offers", r.Success, *r.Message, b.count("artifacts"))
	}
}

// An archive that is not what was announced is fetched again; nothing of it gets into the workspace.
func TestGetArtifactChecksWhatComes(t *testing.T) {
	dir := tree(t, map[string]string{"dist/x": "hello"})
	var archive bytes.Buffer
	made, err := pack(t.Context(), dir, save("dist"), &archive)
	if err != nil {
		t.Fatal(err)
	}
	item := `{"items":[{"title":"app","sha256":"` + made.digest + `","size":` + strconv.FormatInt(made.size, 10) + `,"bytes":5,"entries":2,"dir":"in"}]}`
	b := newBackend(t, artifactTask("t1", wire.TaskArtifactGet, item))
	b.odd = func(op string, n int, _ call) *answer {
		switch {
		case op == made.digest && n == 1:
			return &answer{200, strings.Repeat("x", archive.Len())}
		case op == made.digest:
			return &answer{200, archive.String()}
		}
		return nil
	}
	got := b.run(t)
	if r := b.result(t, 0); !r.Success {
		t.Fatalf("%v\n%s", *r.Message, b.log(""))
	}
	data, err := os.ReadFile(filepath.Join(got.dir, "workspace", "p-1", "src", "in", "dist", "x"))
	if err != nil || string(data) != "hello" || b.count(made.digest) != 2 {
		t.Errorf("%q %v after %d calls", data, err, b.count(made.digest))
	}
	// More than was announced is refused before it is all there.
	b = newBackend(t, artifactTask("t1", wire.TaskArtifactGet, strings.Replace(item, `"bytes":5`, `"bytes":4`, 1)))
	b.odd = func(op string, _ int, _ call) *answer {
		if op == made.digest {
			return &answer{200, archive.String()}
		}
		return nil
	}
	got = b.run(t)
	if r := b.result(t, 0); r.Success || !strings.Contains(*r.Message, "is too large when unpacked") {
		t.Errorf("%v %v", r.Success, *r.Message)
	}
	if left, _ := os.ReadDir(filepath.Join(got.dir, "workspace", "p-1", "src")); len(left) > 0 {
		t.Errorf("left in the workspace: %v", left)
	}
}
