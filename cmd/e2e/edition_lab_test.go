//go:build lab && linux

package e2e

import (
	"archive/zip"
	"crypto/md5" //nolint:gosec // to compare
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// edition is one version of everything, as "devopsAgent upgrade --from" takes it: the programs, and a JDK whose java is a script.
type edition struct {
	version string            // of the programs
	java    string            // in the third line of "java -version"
	dir     string            // the bundle
	sums    map[string]string // SHA-256 of each program, by name
}

const versionFlag = "-s -w -X github.com/devops-agent/devops-agent/cmd/internal/cli.version="

// releases builds v1 and v2 once per process of the tests.
var releases = sync.OnceValues(func() ([2]edition, error) { //nolint:gochecknoglobals // built once, like programs
	var both [2]edition
	top, err := os.MkdirTemp(os.Getenv("E2E_DIR"), "releases")
	if err != nil {
		return both, err
	}
	if err := os.Chmod(top, 0o755); err != nil { //nolint:gosec // other accounts upgrade from it
		return both, err
	}
	for i, version := range []string{"v1.0.0", "v2.0.0"} {
		if both[i], err = makeRelease(filepath.Join(top, version), version, string(rune('a'+i))); err != nil {
			return both, err
		}
	}
	return both, nil
})

func makeRelease(dir, version, java string) (edition, error) {
	r := edition{version: version, java: "lab-" + java, dir: dir, sums: map[string]string{}}
	root, err := lab.ModuleRoot()
	if err == nil {
		err = os.MkdirAll(dir, 0o755) //nolint:gosec // other accounts upgrade from it
	}
	if err != nil {
		return r, err
	}
	for name, folder := range map[string]string{"devopsAgent": "agent", "devopsDaemon": "daemon", "upgrader": "upgrader"} {
		build := exec.Command("go", "build", "-trimpath", "-ldflags", versionFlag+version, "-o", filepath.Join(dir, name), "./cmd/"+folder)
		build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return r, fmt.Errorf("build cmd/%s: %w\n%s", folder, err, out)
		}
		if r.sums[name], err = digest(filepath.Join(dir, name)); err != nil {
			return r, err
		}
	}
	return r, r.writeJDK(filepath.Join(dir, "jdk.zip"))
}

func digest(path string) (_ string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// java is a JDK's java that answers and does nothing else.
func (r edition) javaScript() string {
	lines := fmt.Sprintf("openjdk version \"1.8.0_352\"\nOpenJDK Runtime Environment (build 1.8.0_352-%[1]s)\nOpenJDK 64-Bit Server VM (build 25.352-b1, %[1]s)\n", r.java)
	return "#!/bin/sh\ncat >&2 <<'END'\n" + lines + "END\n"
}

// files of the JDK: some, so that half of one can be told from a whole one.
func (r edition) files() map[string]string {
	files := map[string]string{"release": "JAVA_VERSION=\"1.8.0_352\"\n", "bin/java": r.javaScript()}
	for i := range 40 {
		files[fmt.Sprintf("lib/part%02d", i)] = strings.Repeat(r.java+"\n", 500)
	}
	return files
}

func (r edition) writeJDK(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	z := zip.NewWriter(f)
	for name, text := range r.files() {
		head := &zip.FileHeader{Name: name, Method: zip.Deflate}
		head.SetMode(0o644)
		if strings.HasPrefix(name, "bin/") {
			head.SetMode(0o755)
		}
		w, err := z.CreateHeader(head)
		if err == nil {
			_, err = io.WriteString(w, text)
		}
		if err != nil {
			return err
		}
	}
	return z.Close()
}

// lay puts the edition into a home, as an installation has it.
func (r edition) lay(home string) error {
	for name := range r.sums {
		// by a process of its own: a child of another test, just forked, would hold the file open for writing (ETXTBSY); and what is there
		// may be a link to a program that others run
		if out, err := exec.Command("cp", "--remove-destination", filepath.Join(r.dir, name), filepath.Join(home, name)).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	for name, text := range r.files() {
		path := filepath.Join(home, "jdk", filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // an install tree
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil { //nolint:gosec // programs
			return err
		}
	}
	return nil
}

// bothReleases are v1 and v2.
func bothReleases(t *testing.T) [2]edition {
	t.Helper()
	both, err := releases()
	if err != nil {
		t.Fatal(err)
	}
	return both
}

// treeSum is the MD5 of the JDK's files but for bin, one after the other.
func (r edition) treeSum() string {
	files := r.files()
	h := md5.New() //nolint:gosec // to compare
	_, _ = io.WriteString(h, files["release"])
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasPrefix(name, "lib/") {
			_, _ = io.WriteString(h, files[name])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
