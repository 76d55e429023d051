package controller

import (
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// tray is a package repository, and things beside it.
func tray(t *testing.T) (dir string) {
	t.Helper()
	top := t.TempDir()
	dir = filepath.Join(top, "repo")
	for name, text := range map[string]string{
		"secret": "secret", "repo/dists/stable/InRelease": "signed", "repo/pool/main/d/x/x_1~dev.1+b_amd64.deb": strings.Repeat("0123456789", 100),
		"repo/.lock": "hidden", "repo/.incoming/0": "hidden", "repo/repodata/aa-primary.xml.gz": "gz", "repo/repodata/repomd.xml": "<html>", "repo/index.html": "<script>",
	} {
		path := filepath.Join(top, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPackagesAreServed(t *testing.T) {
	dir := tray(t)
	w := serve(t, Options{Repo: dir})
	deb := "/repo/pool/main/d/x/x_1~dev.1+b_amd64.deb"
	for _, path := range []string{deb, "/repo/pool/main/d/x/x_1%7edev.1%2bb_amd64.deb", "/repo//pool/main/d/x/x_1~dev.1+b_amd64.deb"} {
		r := w.call("GET", path, nil, nil)
		if r.code != 200 || len(r.body) != 1000 || r.header.Get("Content-Type") != "application/vnd.debian.binary-package" || r.header.Get("Last-Modified") == "" {
			t.Errorf("%s: %d, %d bytes, %v", path, r.code, len(r.body), r.header)
		}
	}
	r := w.call("HEAD", deb, nil, nil)
	tag := r.header.Get("ETag")
	if r.code != 200 || r.header.Get("Content-Length") != "1000" || tag == "" || len(r.body) != 0 {
		t.Errorf("HEAD: %d %v", r.code, r.header)
	}
	// A download goes on where it ended, unless the file is another one by now.
	rest := http.Header{"Range": {"bytes=995-"}, "If-Range": {tag}}
	if r := w.call("GET", deb, rest, nil); r.code != 206 || string(r.body) != "56789" || r.header.Get("Content-Range") != "bytes 995-999/1000" {
		t.Errorf("a range: %d %q %v", r.code, r.body, r.header)
	}
	if r := w.call("GET", deb, http.Header{"If-None-Match": {tag}}, nil); r.code != 304 {
		t.Errorf("the same: %d", r.code)
	}
	path := filepath.Join(dir, "pool/main/d/x/x_1~dev.1+b_amd64.deb")
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if r := w.call("GET", deb, rest, nil); r.code != 200 || len(r.body) != 1000 {
		t.Errorf("a range of another file: %d, %d bytes", r.code, len(r.body))
	}
	if r := w.call("GET", deb, http.Header{"If-Modified-Since": {time.Now().UTC().Format(http.TimeFormat)}}, nil); r.code != 304 {
		t.Errorf("not modified: %d", r.code)
	}
	// An index is asked for anew each time; what never changes need not be.
	for path, want := range map[string]string{"/repo/dists/stable/InRelease": "no-cache", "/repo/repodata/repomd.xml": "no-cache", "/repo/repodata/aa-primary.xml.gz": "public, max-age=31536000, immutable"} {
		r := w.call("GET", path, nil, nil)
		if r.code != 200 || r.header.Get("Cache-Control") != want || r.header.Get("Content-Encoding") != "" {
			t.Errorf("%s: %d %v", path, r.code, r.header)
		}
	}
	// Nothing that a browser would run.
	for _, path := range []string{"/repo/index.html", "/repo/repodata/repomd.xml"} {
		if r := w.call("GET", path, nil, nil); r.header.Get("Content-Type") != "text/plain; charset=utf-8" || r.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, r.header)
		}
	}
}

func TestNothingElseIsServed(t *testing.T) {
	dir := tray(t)
	links := map[string]string{"out": "../secret", "far": "/etc/passwd", "up": "..", "in": "dists/stable/InRelease"}
	if runtime.GOOS != "windows" {
		for name, to := range links {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	w := serve(t, Options{Repo: dir})
	for _, path := range []string{"", "dists", "dists/", "dists/stable/", ".lock", ".incoming/0", "dists/../.lock", "missing", "out", "far", "up", "up/secret",
		"../secret", "..%2fsecret", "%2e%2e/secret", "%2e%2e%2fsecret", "pool/..%2f..%2fsecret", "..%5csecret", "%2fetc%2fpasswd", "InRelease%00", "dists/stable/InRelease/"} {
		r := w.call("GET", "/repo/"+path, nil, nil)
		if r.code != 404 && r.code != 400 || strings.Contains(string(r.body), "hidden") || strings.Contains(string(r.body), "secret\n") {
			t.Errorf("%q: %d %.100q", path, r.code, r.body)
		}
	}
	if r := w.call("GET", "/repo/in", nil, nil); runtime.GOOS != "windows" && string(r.body) != "signed" {
		t.Errorf("a link within: %d", r.code)
	}
	for _, method := range []string{"PUT", "POST", "DELETE"} {
		if r := w.call(method, "/repo/dists/stable/InRelease", nil, "x"); r.code != 404 && r.code != 405 {
			t.Errorf("%s: %d", method, r.code)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "dists/stable/InRelease")); err != nil || string(text) != "signed" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestNoPackagesUnlessAskedFor(t *testing.T) {
	if r := serve(t, Options{}).call("GET", "/repo/dists/stable/InRelease", nil, nil); r.code != 404 {
		t.Errorf("%d", r.code)
	}
	if s, err := Open(Options{Repo: filepath.Join(t.TempDir(), "missing")}); err == nil {
		_ = s.Close()
		t.Error("a directory that is not there is served")
	}
}
