//go:build linux

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// listedArtifact is an artifact as the CLI lists it.
type listedArtifact struct {
	Build  string `json:"build"`
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
	Gone   bool   `json:"gone"`
}

func artifactsOf(t *testing.T, c *lab.Controller, which ...string) (list []listedArtifact) {
	t.Helper()
	out, code := c.Run("", append([]string{"artifact", "list", "--json"}, which...)...)
	if code != 0 || json.Unmarshal([]byte(out), &list) != nil {
		t.Fatalf("artifact list %v: %d %s", which, code, out)
	}
	return list
}

// makeTree is a script that makes a tree with all that an artifact may hold.
const makeTree = `
rm -rf dist && mkdir -p 'dist/sub dir/ünïcode' dist/empty
printf '#!/bin/sh\necho runs\n' >dist/tool && chmod 755 dist/tool
: >dist/nothing
printf 'hello\n' >'dist/sub dir/ünïcode/名前 with spaces.txt'
head -c 300000 /dev/zero >dist/zeros
head -c 300000 /dev/urandom >dist/noise
ln -s 'sub dir/ünïcode/名前 with spaces.txt' dist/link
echo debris >dist/x.tmp
`

// TestArtifactsBetweenJobs: a tree with an executable, an empty file and folder, a link, and names with spaces and other
// letters gets from one job to another byte for byte; the cells of a matrix do not collide; what is not there is a
// failure of its step, unless it is optional; the CLI fetches the same.
func TestArtifactsBetweenJobs(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t), "--artifact-max", "1MiB")
	home, _ := enrolled(t, c)
	out, code := c.Run(`name: chain
jobs:
  build:
    steps:
      - script: |`+strings.ReplaceAll(makeTree, "\n", "\n          ")+`
          (cd dist && find . ! -name '*.tmp' | sort && find . -type f ! -name '*.tmp' -exec sha256sum {} + | sort -k2) >sums.txt
    artifacts:
      - {name: app, paths: [dist/**], exclude: ["**/*.tmp"], keep: 7d}
      - {name: sums, paths: sums.txt}
      - {name: maybe, paths: "no/such/*", optional: true}
  cells:
    matrix: {os: [one, two]}
    steps: [{script: "echo it is ${{ matrix.os }} >cell.txt"}]
    artifacts: [{name: cell, paths: [cell.txt]}]
  use:
    needs: [build, cells]
    download:
      - {from: build, name: app, path: in}
      - build
      - {from: cells}
    steps:
      - script: |
          cd in/dist
          (find . | sort && find . -type f -exec sha256sum {} + | sort -k2) | diff - ../../artifacts/build/sums/sums.txt && echo same
          test -x tool && ./tool
          test ! -x zeros && test "$(readlink link)" = 'sub dir/ünïcode/名前 with spaces.txt' && cat link
          test -d empty && test ! -s nothing && echo empty
          cmp tool ../../artifacts/build/app/dist/tool
          cat ../../artifacts/cells/*/cell/cell.txt
          ls ../../artifacts/cells
          ls -a ../.. | grep devops-artifact || echo clean
`, "run", "-")
	if code != 0 {
		t.Fatalf("exit code %d: %s\n%s", code, out, home.Log())
	}
	for _, want := range []string{"| same\n", "| runs\n", "| hello\n", "| empty\n", "| it is one\n", "| it is two\n", "| one\n", "| two\n", "| clean\n",
		"artifact maybe of job build, which is succeeded, was not saved"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	list := artifactsOf(t, c, "--run", "1")
	if len(list) != 4 || list[0].Name != "app" || len(artifactsOf(t, c)) != 4 {
		t.Fatalf("%+v", list)
	}
	to := filepath.Join(t.TempDir(), "got")
	if _, code := c.Run("", "artifact", "get", list[0].Build, "app", "--to", to); code != 0 {
		t.Fatal("not fetched")
	}
	if data, err := os.ReadFile(filepath.Join(to, "dist/link")); err != nil || string(data) != "hello\n" {
		t.Errorf("fetched: %q %v", data, err)
	}
	if info, err := os.Stat(filepath.Join(to, "dist/tool")); err != nil || info.Mode().Perm()&0o111 == 0 {
		t.Errorf("the tool cannot be run: %v %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(to, "dist/x.tmp")); err == nil {
		t.Error("what was excluded is there")
	}
	// The same files are the same archive, stored once.
	out, code = c.Run("name: again\nsteps:\n  - script: |\n      echo one >a; echo it is one >cell.txt\nartifacts: [{name: other, paths: [cell.txt]}]\n", "run", "-")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	blobs, err := os.ReadDir(filepath.Join(c.Data, "files", "artifacts"))
	if err != nil || len(blobs) != 4 {
		t.Errorf("%d archives: %v", len(blobs), err)
	}

	for name, bad := range map[string]struct{ file, want string }{
		"not there": {"steps: [{script: true}]\nartifacts: [{name: a, paths: [none/**]}]\n", "nothing in the workspace matches none/**"},
		"too large": {"steps: [{script: \"head -c 1100000 /dev/zero >big\"}]\nartifacts: [{name: a, paths: [big]}]\n", "one artifact may not have more (serve --artifact-max)"},
		"leads out": {"steps: [{script: \"ln -sf /etc/passwd out\"}]\nartifacts: [{name: a, paths: [out]}]\n", "is a link that leads out of the directory"},
	} {
		out, code := c.Run(bad.file, "run", "-")
		if code != 1 || !strings.Contains(out, bad.want) {
			t.Errorf("%s: exit code %d: %s", name, code, out)
		}
	}
	// A report of what went wrong is saved, and the build fails all the same.
	out, code = c.Run("name: report\nsteps: [{script: \"echo red >report.txt; exit 3\"}]\nartifacts:\n  - {name: report, paths: report.txt, when: always}\n  - {name: good, paths: report.txt}\n", "run", "-")
	if saved := artifactsOf(t, c, "--limit", "1"); code != 1 || len(saved) != 1 || saved[0].Name != "report" {
		t.Errorf("exit code %d, saved %+v: %s", code, saved, out)
	}
}

func buildOver(c *lab.Controller, id string) bool {
	b, err := c.Build(id)
	return err == nil && b.FinishedAt != 0
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// TestArtifactSurvivesKills: the controller is killed with kill -9 while an archive is on its way, several times, and the
// artifact is saved once and whole.
func TestArtifactSurvivesKills(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, _ := enrolled(t, c)
	id := c.Submit("steps: [{script: \"head -c 200000000 /dev/urandom >big; sha256sum <big >sum\"}]\nartifacts: [{name: big, paths: [big, sum]}]\n")
	store := filepath.Join(c.Data, "files", "artifacts")
	partial := func() bool {
		entries, _ := os.ReadDir(store) // none: not begun
		for _, e := range entries {
			if info, err := e.Info(); err == nil && strings.HasPrefix(e.Name(), ".upload-") && info.Size() > 0 {
				return true
			}
		}
		return false
	}
	kills := 0
	for range 3 {
		if !lab.Eventually(2*time.Minute, func() bool { return partial() || buildOver(c, id) }) {
			t.Fatalf("nothing is being sent: %s\n%s", c.Log(), home.Log())
		}
		if buildOver(c, id) {
			break // it was too fast for us
		}
		c.Kill()
		c.Start()
		kills++
	}
	if kills == 0 {
		t.Error("the controller was never killed while it got an archive")
	}
	if b := c.Over(4*time.Minute, id); b.State != "succeeded" {
		out, _ := c.Run("", "logs", id)
		t.Fatalf("%+v\n%s\n%s", b, out, c.Log())
	}
	if partial() {
		t.Error("half an archive is left")
	}
	to := filepath.Join(t.TempDir(), "got")
	if _, code := c.Run("", "artifact", "get", id, "big", "--to", to); code != 0 {
		t.Fatal("not fetched")
	}
	want, err := os.ReadFile(filepath.Join(to, "sum"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := fileDigest(filepath.Join(to, "big")); err != nil || !strings.HasPrefix(string(want), got) {
		t.Errorf("%s, not %s: %v", got, want, err)
	}
}
