package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestVersionsComeAndGo(t *testing.T) {
	in, out := t.TempDir(), filepath.Join(t.TempDir(), "new", "repo")
	r := Repository{Dir: out, Keys: []*Key{aKey(t)}, Keep: 2, Now: day(2)}
	c := publish(t, r, demo(t, in, "1.9")...)
	if len(c.Added) != 4 || !c.Apt || !c.Yum || len(c.Dropped) != 0 {
		t.Errorf("%+v", c)
	}
	if got := look(t, out, aKey(t)).String(); got != seen("1.9") {
		t.Error(got)
	}
	// The same again is nothing: no index is written anew.
	before := snapshot(t, out)
	r.Now = day(3)
	if c := publish(t, r, demo(t, in, "1.9")...); len(c.Added) != 0 || c.Apt || c.Yum {
		t.Errorf("%+v", c)
	}
	if after := snapshot(t, out); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	// 1.10 is newer than 1.9; 1.10~rc is not.
	publish(t, r, demo(t, in, "1.10")...)
	if got := look(t, out, aKey(t)).String(); got != seen("1.10", "1.9") {
		t.Error(got)
	}
	r.Now = day(4)
	if c := publish(t, r, demo(t, in, "1.10~rc.1")...); len(c.Dropped) != 4 || c.Dropped[0].Version != "1.9-1" || c.Dropped[3].Version != "1.9" {
		t.Errorf("%+v", c)
	}
	if got := look(t, out, aKey(t)).String(); got != seen("1.10", "1.10~rc.1") {
		t.Error(got)
	}
	// One that is older than what is kept never gets in.
	if c := publish(t, r, demo(t, in, "1.8")...); len(c.Added)+len(c.Dropped) != 0 || c.Apt || c.Yum {
		t.Errorf("%+v", c)
	}
}

// snapshot is every file with its content's sum.
func snapshot(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	tr := tree{swap.Real(), dir}
	names, err := tr.names(".", func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		sum, size, err := tr.sum(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, name, size, sum[:8])
	}
	return b.String()
}

// Whoever has read an index goes on with it while the next one is published, and for an hour more.
func TestReadersOfTheIndexBeforeAreServed(t *testing.T) {
	in, out := t.TempDir(), t.TempDir()
	r := Repository{Dir: out, Keys: []*Key{aKey(t)}, Keep: 1, Now: day(2)}
	publish(t, r, demo(t, in, "1")...)
	tr := tree{swap.Real(), out}
	s := signers{r.Keys, r.Now}
	oldApt, err := apt{tr, "stable"}.read(s)
	if err != nil {
		t.Fatal(err)
	}
	oldYum, err := yum{tr}.read(s)
	if err != nil {
		t.Fatal(err)
	}
	files := slices.Concat(oldApt.files, oldYum.files)
	if len(files) < 6+4+3 {
		t.Fatalf("%q", files)
	}
	there := func() (n int) {
		for _, name := range files {
			if tr.size(name) >= 0 {
				n++
			}
		}
		return n
	}
	r.Now = day(3)
	publish(t, r, demo(t, in, "2")...)
	publish(t, r, demo(t, in, "3")...)
	if n := there(); n != len(files) {
		t.Errorf("%d of %d files are there two publications later", n, len(files))
	}
	r.Now = day(3).Add(2 * time.Hour)
	publish(t, r, demo(t, in, "4")...)
	publish(t, r, demo(t, in, "5")...)
	if n := there(); n != 0 {
		t.Errorf("%d of %d files are there for ever", n, len(files))
	}
	if got := look(t, out, aKey(t)).String(); got != seen("5") {
		t.Error(got)
	}
}

func TestOtherContentUnderTheSameNameIsRefused(t *testing.T) {
	in, out := t.TempDir(), t.TempDir()
	r := Repository{Dir: out, Keys: []*Key{aKey(t)}, Now: day(2)}
	publish(t, r, demo(t, in, "1")...)
	for _, format := range []string{"deb", "rpm"} {
		other := sample{format: format, name: "demo", version: "1", arch: "amd64", content: "!"}.write(t, t.TempDir())
		_, err := r.Publish(context.Background(), append(demo(t, in, "2"), other)...)
		if c, ok := errors.AsType[*ConflictError](err); !ok || c.Package.Name != "demo" || c.Hint() == "" {
			t.Errorf("%s: %v", format, err)
		}
	}
	// Two in one call are no better.
	a, b := sample{format: "deb", name: "twin", version: "1", arch: "amd64"}, sample{format: "deb", name: "twin", version: "1", arch: "amd64", content: "!"}
	if _, err := r.Publish(context.Background(), a.write(t, t.TempDir()), b.write(t, t.TempDir())); err == nil {
		t.Error("two contents in one call")
	}
	// An epoch is not in the name of a file.
	publish(t, r, a.write(t, t.TempDir()))
	epoch := sample{format: "deb", name: "twin", version: "2:1", arch: "amd64"}
	if _, err := r.Publish(context.Background(), epoch.write(t, t.TempDir())); err == nil {
		t.Error("two versions in one file")
	}
	if got := look(t, out, aKey(t)).String(); !strings.HasPrefix(got, "binary-amd64 demo_1_amd64.deb, binary-amd64 twin_1_amd64.deb") {
		t.Error(got)
	}
}

func TestPackagesForAllArchitecturesAreInEveryIndex(t *testing.T) {
	in, out := t.TempDir(), t.TempDir()
	r := Repository{Dir: out, Keys: []*Key{aKey(t)}, Now: day(2)}
	publish(t, r, sample{format: "deb", name: "libmeta", version: "1", arch: "all"}.write(t, in), sample{format: "deb", name: "demo", version: "1", arch: "riscv64"}.write(t, in),
		sample{format: "rpm", name: "meta", version: "1", arch: "all"}.write(t, in))
	want := "binary-amd64 libmeta_1_all.deb, binary-arm64 libmeta_1_all.deb, binary-riscv64 demo_1_riscv64.deb, binary-riscv64 libmeta_1_all.deb | meta-1-1.noarch.rpm"
	if got := look(t, out, aKey(t)).String(); got != want {
		t.Error(got)
	}
	if _, err := os.Stat(filepath.Join(out, "pool/main/libm/libmeta/libmeta_1_all.deb")); err != nil {
		t.Error(err)
	}
	publish(t, r, demo(t, in, "2")...) // and stays so
	if got := look(t, out, aKey(t)).String(); strings.Count(got, "libmeta") != 3 || !strings.Contains(got, "meta-1-1.noarch.rpm") {
		t.Error(got)
	}
}

// One repository of each kind alone.
func TestOneKindAlone(t *testing.T) {
	for _, format := range []string{"deb", "rpm"} {
		out := t.TempDir()
		r := Repository{Dir: out, Keys: []*Key{aKey(t)}, Now: day(2), URL: "https://example.org/repo/"}
		publish(t, r, sample{format: format, name: "demo", version: "1", arch: "amd64"}.write(t, t.TempDir()))
		_, noApt := os.Stat(filepath.Join(out, "dists"))
		_, noYum := os.Stat(filepath.Join(out, "repodata"))
		if (noApt == nil) != (format == "deb") || (noYum == nil) != (format == "rpm") {
			t.Errorf("%s: %v, %v", format, noApt, noYum)
		}
		publish(t, r)
	}
}

func TestEveryCompressionOfADebIsRead(t *testing.T) {
	out := t.TempDir()
	r := Repository{Dir: out, Keys: []*Key{aKey(t)}, Now: day(2)}
	var list []string
	for _, c := range []string{"gzip", "xz", "zstd", "none"} {
		list = append(list, sample{format: "deb", name: "demo-" + c, version: "1", arch: "amd64", compression: c}.write(t, t.TempDir()))
	}
	if c := publish(t, r, list...); len(c.Added) != 4 {
		t.Errorf("%+v", c)
	}
}

// quickDisk forces nothing to the disk.
type quickDisk struct{ swap.Disk }

func (quickDisk) Sync(string) error { return nil }

// dyingDisk is a quick one until left changes were made; then every later one fails, as after a power cut.
type dyingDisk struct {
	quickDisk
	left int
}

var errPower = errors.New("the power is gone")

func (d *dyingDisk) alive() error {
	if d.left <= 0 {
		return errPower
	}
	d.left--
	return nil
}

func (d *dyingDisk) Write(path string, data []byte, mode fs.FileMode) error {
	if err := d.alive(); err != nil {
		_ = d.quickDisk.Write(path, data[:len(data)/2], mode) // half of it, as a power cut leaves it
		return err
	}
	return d.quickDisk.Write(path, data, mode)
}

func (d *dyingDisk) Copy(from, to string) error {
	return d.then(func() error { return d.quickDisk.Copy(from, to) })
}

func (d *dyingDisk) Mkdir(path string, mode fs.FileMode) error {
	return d.then(func() error { return d.quickDisk.Mkdir(path, mode) })
}
func (d *dyingDisk) Link(from, to string) error {
	return d.then(func() error { return d.quickDisk.Link(from, to) })
}
func (d *dyingDisk) Chmod(path string, mode fs.FileMode) error {
	return d.then(func() error { return d.quickDisk.Chmod(path, mode) })
}
func (d *dyingDisk) Rename(from, to string) error {
	return d.then(func() error { return d.quickDisk.Rename(from, to) })
}
func (d *dyingDisk) Exchange(a, b string) error {
	return d.then(func() error { return d.quickDisk.Exchange(a, b) })
}
func (d *dyingDisk) Remove(path string) error {
	return d.then(func() error { return d.quickDisk.Remove(path) })
}
func (d *dyingDisk) Symlink(target, path string) error {
	return d.then(func() error { return d.quickDisk.Symlink(target, path) })
}

func (d *dyingDisk) then(do func() error) error {
	if err := d.alive(); err != nil {
		return err
	}
	return do()
}

// TestInterruptedPublications: after a crash at any step clients see one state or the other, whole; the next run ends what
// was begun and leaves nothing behind. That run may bring the same packages, others, or none.
func TestInterruptedPublications(t *testing.T) {
	in := t.TempDir()
	one, two, three := demo(t, in, "1"), demo(t, in, "2"), demo(t, in, "3")
	first := t.TempDir()
	publish(t, Repository{Dir: first, Keys: []*Key{aKey(t)}, Now: day(2), URL: "https://example.org"}, one...)
	clean := t.TempDir()
	r := Repository{Keys: []*Key{aKey(t)}, Now: day(3), URL: "https://example.org"}
	if err := os.CopyFS(clean, os.DirFS(first)); err != nil {
		t.Fatal(err)
	}
	r.Dir = clean
	publish(t, r, two...)
	want := strings.Count(snapshot(t, clean), "\n")
	halves := map[string]int{}
	for n := 0; ; n++ {
		dir := filepath.Join(t.TempDir(), "repo")
		if err := os.CopyFS(dir, os.DirFS(first)); err != nil {
			t.Fatal(err)
		}
		r.Dir, r.disk = dir, &dyingDisk{quickDisk{swap.Real()}, n}
		_, err := r.Publish(context.Background(), two...)
		if err != nil && !errors.Is(err, errPower) {
			t.Fatalf("after %d changes: %v", n, err)
		}
		v, lookErr := tryLook(dir, aKey(t))
		if lookErr != nil {
			t.Fatalf("after %d changes clients find: %v", n, lookErr)
		}
		halves[v.String()]++
		if err == nil {
			break
		}
		for _, half := range []string{strings.Join(v.apt, ", "), strings.Join(v.yum, ", ")} {
			if !strings.Contains(seen("1")+"|"+seen("1", "2"), half) {
				t.Fatalf("after %d changes clients see %s", n, v)
			}
		}
		r.disk = quickDisk{swap.Real()}
		switch n % 3 {
		case 0:
			publish(t, r, two...)
			if got := look(t, dir, aKey(t)).String(); got != seen("1", "2") {
				t.Fatalf("after %d changes and again: %s", n, got)
			}
			if got := strings.Count(snapshot(t, dir), "\n"); got != want {
				t.Fatalf("after %d changes and again there are %d files, not %d:\n%s", n, got, want, snapshot(t, dir))
			}
		case 1:
			publish(t, r)
			if got := look(t, dir, aKey(t)); got.String() != v.String() {
				t.Fatalf("after %d changes and nothing: %s, before %s", n, got, v)
			}
		case 2:
			publish(t, r, three...)
			if got := look(t, dir, aKey(t)).String(); !strings.Contains(got, "demo_3_amd64.deb") || !strings.Contains(got, "demo-3-1.x86_64.rpm") {
				t.Fatalf("after %d changes and others: %s", n, got)
			}
		}
	}
	if halves[seen("1")] < 10 || halves[seen("1", "2")] < 1 {
		t.Errorf("%v", halves)
	}
}

// TestReadersSeeOneState reads all the time while versions are published.
func TestReadersSeeOneState(t *testing.T) {
	in, out := t.TempDir(), t.TempDir()
	r := Repository{Dir: out, Keys: []*Key{aKey(t)}, Keep: 1, Now: day(2)}
	publish(t, r, demo(t, in, "1")...)
	done := make(chan struct{})
	var readers sync.WaitGroup
	reads, pairs := 0, 0
	readers.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			_, err := tryLook(out, aKey(t))
			reads++
			if err != nil && strings.Contains(err.Error(), "signature") {
				pairs++ // repomd.xml of before, its signature of after: said so in Publish
				continue
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	for n := range 15 {
		publish(t, r, demo(t, in, fmt.Sprint(n+2))...)
	}
	close(done)
	readers.Wait()
	if reads < 15 || pairs > 15 {
		t.Errorf("%d reads, %d of them of a pair that does not match", reads, pairs)
	}
	t.Logf("%d reads, %d of them of a pair that does not match", reads, pairs)
}

func TestPublicationsTakeTurns(t *testing.T) {
	in, out := t.TempDir(), t.TempDir()
	r := Repository{Dir: out, Keys: []*Key{aKey(t)}, Now: day(2)}
	var runs sync.WaitGroup
	for _, version := range []string{"1", "2", "3", "4"} {
		files := demo(t, in, version)
		runs.Go(func() {
			if _, err := r.Publish(context.Background(), files...); err != nil {
				t.Error(err)
			}
		})
	}
	runs.Wait()
	if got := look(t, out, aKey(t)).String(); got != seen("1", "2", "3", "4") {
		t.Error(got)
	}
	unlock, err := tree{swap.Real(), out}.lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer stop()
	if _, err := r.Publish(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another one runs: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	publish(t, r)
}

func TestWhatSomebodyElseWroteIsNotSigned(t *testing.T) {
	in, base := t.TempDir(), t.TempDir()
	r := Repository{Dir: base, Keys: []*Key{aKey(t)}, Now: day(2)}
	publish(t, r, demo(t, in, "1")...)
	other, err := GenerateKey(Ed25519, "Other", day(1))
	if err != nil {
		t.Fatal(err)
	}
	tr := tree{swap.Real(), base}
	find := func(prefix, suffix string) []string {
		names, err := tr.names(".", func(name string) bool { return strings.HasPrefix(name, prefix) && strings.HasSuffix(name, suffix) })
		if err != nil || len(names) == 0 {
			t.Fatalf("%s…%s: %q, %v", prefix, suffix, names, err)
		}
		return names
	}
	for _, c := range []struct {
		why   string
		names []string
		sure  func(error) bool
	}{
		{"InRelease", find("dists/stable/InRelease", ""), isA[*SignatureError]},
		{"an index", find("dists/stable/main/binary-amd64/by-hash", ""), nil},
		{"repomd.xml", find("repodata/repomd.xml", ".xml"), isA[*SignatureError]},
		{"its signature", find("repodata/repomd.xml.asc", ""), nil},
		{"primary", find("repodata", "-primary.xml.gz"), nil},
		{"a package, by its size", find("pool", "_amd64.deb"), isA[*MissingError]},
	} {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
			t.Fatal(err)
		}
		for _, name := range c.names {
			path := filepath.Join(dir, filepath.FromSlash(name))
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			data = append(data[:len(data)/2], append([]byte("x"), data[len(data)/2:]...)...)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		bad := r
		bad.Dir = dir
		if _, err := bad.Publish(context.Background(), demo(t, in, "2")...); err == nil || c.sure != nil && !c.sure(err) {
			t.Errorf("%s: %v", c.why, err)
		}
	}
	// An index that reads well, and is another one.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
		t.Fatal(err)
	}
	primary := find("repodata", "-primary.xml.gz")[0]
	packed, err := os.ReadFile(filepath.Join(dir, primary))
	if err != nil {
		t.Fatal(err)
	}
	text, err := gunzipped(packed)
	if err == nil {
		packed, err = gzipped(bytes.Replace(text, []byte("A demo"), []byte("A trap"), 1))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, primary), packed, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Repository{Dir: dir, Keys: r.Keys, Now: day(3)}).Publish(context.Background()); err == nil || !strings.Contains(err.Error(), "is not what was signed") {
		t.Errorf("another primary: %v", err)
	}
	// Another key knows nothing of what is there; both together do, and so does the other one then.
	r.Keys = []*Key{other}
	if _, err := r.Publish(context.Background()); !isA[*SignatureError](err) {
		t.Errorf("another key: %v", err)
	}
	r.Keys = []*Key{aKey(t), other}
	if c := publish(t, r); !c.Apt || !c.Yum {
		t.Errorf("%+v", c)
	}
	look(t, base, aKey(t))
	look(t, base, other)
	r.Keys = []*Key{other}
	if c := publish(t, r); !c.Apt || !c.Yum {
		t.Errorf("%+v", c)
	}
	look(t, base, other)
	if _, err := tryLook(base, aKey(t)); err == nil {
		t.Error("the old key still signs")
	}
}

func isA[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// A package that is gone from the directory comes back when it is given again.
func TestAMissingPackageIsPutBack(t *testing.T) {
	in, out := t.TempDir(), t.TempDir()
	r := Repository{Dir: out, Keys: []*Key{aKey(t)}, Now: day(2)}
	files := demo(t, in, "1")
	publish(t, r, files...)
	if err := os.Remove(filepath.Join(out, "pool/main/d/demo/demo_1_amd64.deb")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Publish(context.Background()); !isA[*MissingError](err) {
		t.Errorf("%v", err)
	}
	publish(t, r, files...)
	if got := look(t, out, aKey(t)).String(); got != seen("1") {
		t.Error(got)
	}
}

func TestValidUntil(t *testing.T) {
	out := t.TempDir()
	r := Repository{Dir: out, Keys: []*Key{aKey(t)}, Now: day(2), ValidFor: 48 * time.Hour, Origin: "Example", Label: "An example", Suite: "testing"}
	publish(t, r, demo(t, t.TempDir(), "1")...)
	read := func() string {
		data, err := os.ReadFile(filepath.Join(out, "dists/testing/InRelease"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for _, want := range []string{"\nDate: Mon, 02 Mar 2026 12:00:00 UTC\nValid-Until: Wed, 04 Mar 2026 12:00:00 UTC\n", "Origin: Example\nLabel: An example\nSuite: testing\n",
		"\nAcquire-By-Hash: yes\nArchitectures: amd64 arm64\nComponents: main\n"} {
		if !strings.Contains(read(), want) {
			t.Errorf("no %q in\n%s", want, read())
		}
	}
	r.Now = day(3)
	if c := publish(t, r); !c.Apt || c.Yum {
		t.Errorf("%+v", c)
	}
	if !strings.Contains(read(), "\nValid-Until: Thu, 05 Mar 2026") {
		t.Error(read())
	}
	r.ValidFor = 0
	publish(t, r)
	r.Label = "Renamed"
	if c := publish(t, r); !c.Apt || !strings.Contains(read(), "Label: Renamed") {
		t.Errorf("%+v", c)
	}
}

func TestFilesForMachines(t *testing.T) {
	out, in := t.TempDir(), t.TempDir()
	r := Repository{Dir: out, Keys: []*Key{aKey(t)}, Now: day(2)}
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			return ""
		}
		return string(data)
	}
	key := filepath.Join(in, "key")
	secret, err := aKey(t).MarshalSecret("")
	if err == nil {
		err = os.WriteFile(key, secret, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	publish(t, r, sample{format: "rpm", name: "signed", version: "1", arch: "amd64", key: key}.write(t, in))
	if read("devops-agent.repo") != "" {
		t.Error("without an address there is a file")
	}
	r.URL = "https://example.org/repo/"
	publish(t, r)
	if got, want := read("devops-agent.sources"), "Types: deb\nURIs: https://example.org/repo\nSuites: stable\nComponents: main\nSigned-By: /etc/apt/keyrings/devops-agent.gpg\n"; got != want {
		t.Errorf("%q", got)
	}
	want := "[devops-agent]\nname=devops-agent\nbaseurl=https://example.org/repo\nenabled=1\nrepo_gpgcheck=1\ngpgcheck=1\ngpgkey=https://example.org/repo/devops-agent.asc\n"
	if got := read("devops-agent.repo"); got != want {
		t.Errorf("%q", got)
	}
	publish(t, r, sample{format: "rpm", name: "unsigned", version: "1", arch: "amd64"}.write(t, in))
	if got := read("devops-agent.repo"); got != strings.Replace(want, "gpgcheck=1\ngpgkey", "gpgcheck=0\ngpgkey", 1) {
		t.Errorf("with an rpm that is not signed: %q", got)
	}
	publish(t, r) // which reads it from the repository
	if got := read("devops-agent.repo"); !strings.Contains(got, "\ngpgcheck=0\n") {
		t.Errorf("later: %q", got)
	}
	for name, ring := range map[string]func() ([]byte, error){"devops-agent.gpg": func() ([]byte, error) { return Public(aKey(t)) }, "devops-agent.asc": func() ([]byte, error) { return ArmouredPublic(aKey(t)) }} {
		if data, err := ring(); err != nil || read(name) != string(data) {
			t.Errorf("%s: %q, %v", name, read(name), err)
		}
	}
}

func TestMistakesOfTheCaller(t *testing.T) {
	in := t.TempDir()
	good := sample{format: "deb", name: "demo", version: "1", arch: "amd64"}.write(t, in)
	text := filepath.Join(in, "text")
	if err := os.WriteFile(text, []byte("no package, whatever its name may be"), 0o600); err != nil {
		t.Fatal(err)
	}
	key := aKey(t)
	for why, c := range map[string]struct {
		r     Repository
		files []string
	}{
		"no key":              {Repository{}, nil},
		"a name with a slash": {Repository{Keys: []*Key{key}, Name: "../x"}, nil},
		"two lines":           {Repository{Keys: []*Key{key}, Label: "a\nOrigin: b"}, nil},
		"a suite":             {Repository{Keys: []*Key{key}, Suite: "a b"}, nil},
		"no address":          {Repository{Keys: []*Key{key}, URL: "example.org"}, nil},
		"a file's address":    {Repository{Keys: []*Key{key}, URL: "file:///srv"}, nil},
		"an address of two":   {Repository{Keys: []*Key{key}, URL: "http://a/ \nx=1"}, nil},
		"keep":                {Repository{Keys: []*Key{key}, Keep: -1}, nil},
		"no package":          {Repository{Keys: []*Key{key}}, []string{good, text}},
		"no file":             {Repository{Keys: []*Key{key}}, []string{filepath.Join(in, "missing")}},
		"a directory":         {Repository{Keys: []*Key{key}}, []string{in}},
	} {
		c.r.Dir, c.r.Now = t.TempDir(), day(2)
		if _, err := c.r.Publish(context.Background(), c.files...); err == nil {
			t.Errorf("%s was taken", why)
		}
		if _, err := os.Stat(filepath.Join(c.r.Dir, "dists")); err == nil {
			t.Errorf("%s: something was published", why)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if _, err := (Repository{Dir: t.TempDir(), Keys: []*Key{key}}).Publish(ctx, good); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
