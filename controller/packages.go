package controller

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
)

// packagesPrefix is where the package repository is; clients have this address in their sources.
const packagesPrefix = "/repo/"

// packages is a package repository: static files that package managers fetch, and whose signatures they check. Everybody
// may read it; nothing outside its directory can be reached through it, and nothing is listed. A nil *packages is none.
type packages struct{ root *os.Root }

func openPackages(dir string) (*packages, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the package repository: %w", err)
	}
	return &packages{root}, nil
}

func (p *packages) close() error {
	if p == nil {
		return nil
	}
	return p.root.Close()
}

// routes adds GET and HEAD of the files.
func (p *packages) routes(mux *http.ServeMux) {
	if p != nil {
		mux.HandleFunc("GET "+packagesPrefix+"{path...}", p.serve)
	}
}

// serve answers with a file, or a range of it.
func (p *packages) serve(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("path")
	f, info, err := p.open(name)
	if err != nil { // whatever it is: the client learns nothing about the machine
		refuse(w, http.StatusNotFound, "no such file: "+clip(name, 200))
		return
	}
	defer func() { _ = f.Close() }()
	h := w.Header()
	h.Set("Content-Type", packageType(name))
	h.Set("X-Content-Type-Options", "nosniff")
	// Files are replaced by renaming: another content is another time.
	h.Set("ETag", `"`+strconv.FormatInt(info.ModTime().UnixNano(), 36)+"-"+strconv.FormatInt(info.Size(), 36)+`"`)
	h.Set("Cache-Control", packageCaching(name))
	http.ServeContent(w, r, "", info.ModTime(), f)
}

// open opens a regular file that is not hidden: what is hidden is work in progress.
func (p *packages) open(name string) (*os.File, fs.FileInfo, error) {
	if !fs.ValidPath(name) || strings.HasPrefix(name, ".") || strings.Contains(name, "/.") {
		return nil, nil, fs.ErrNotExist
	}
	if info, err := p.root.Stat(name); err != nil || !info.Mode().IsRegular() { // to open a pipe is to wait
		return nil, nil, fs.ErrNotExist
	}
	f, err := p.root.Open(name)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, nil, fs.ErrNotExist
	}
	return f, info, nil
}

// packageType never is one that a browser runs.
func packageType(name string) string {
	switch path.Ext(name) {
	case ".deb":
		return "application/vnd.debian.binary-package"
	case ".rpm":
		return "application/x-rpm"
	case ".gz", ".xz", ".gpg":
		return "application/octet-stream"
	}
	return "text/plain; charset=utf-8"
}

// packageCaching: what has its sum in its name never changes; an index is asked for anew, so that a cache on the way does
// not mix old and new ones.
func packageCaching(name string) string {
	if strings.Contains(name, "/by-hash/") || strings.HasPrefix(name, "repodata/") && strings.HasSuffix(name, ".xml.gz") {
		return "public, max-age=31536000, immutable"
	}
	return "no-cache"
}
