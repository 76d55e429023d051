package upgrader

import (
	"archive/zip"
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/upgrader/journal"
	"github.com/devops-agent/devops-agent/upgrader/unpack"
)

// TestARealJDK replaces the stand-in by the JDK of this machine, packed as BK-CI packs it.
func TestARealJDK(t *testing.T) {
	java, err := exec.LookPath("java")
	if err == nil {
		java, err = filepath.EvalSymlinks(java)
	}
	if err != nil {
		t.Skip("needs a machine with a JDK")
	}
	root := filepath.Dir(filepath.Dir(java))
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := os.Stat(path) // distributions link to /etc; a dangling link is left out
		if err != nil || !info.Mode().IsRegular() {
			return nil //nolint:nilerr // see above
		}
		if name := entry.Name(); name == "src.zip" || name == "classes.jsa" || name == "classes_nocoops.jsa" || strings.HasSuffix(name, ".jmod") {
			return nil
		}
		h, err := zip.FileInfoHeader(info)
		if err != nil {
			return err
		}
		h.Name, err = filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f, err := w.CreateHeader(h) // stored: packing is not what is tested
		if err != nil {
			return err
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, in)
		return firstOf(err, in.Close())
	})
	if err = firstOf(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	s.put(journal.JDK17, b.String())
	begun := time.Now()
	stage := s.prepare(Order{JDK17: true})
	if err := stage.Err(); err != nil {
		t.Fatal(err)
	}
	prepared := time.Now()
	if _, err := s.Replace(t.Context(), stage, journal.Plan{Kind: journal.FromServer}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB: fetched, unpacked and tried in %v, replaced in %v", b.Len()>>20, prepared.Sub(begun).Round(time.Millisecond), time.Since(prepared).Round(time.Millisecond))
	lines, err := JavaVersion(t.Context(), unpack.Java(s.Inst.Path("jdk17"), s.GOOS))
	if err != nil || len(lines) < 3 {
		t.Errorf("java says %q, %v", lines, err)
	}
	s.clean()
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
