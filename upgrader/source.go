package upgrader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/devops-agent/devops-agent/upgrader/fetch"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// Source is where new parts come from: the gateway, or a directory.
type Source interface {
	// Fetch gets the file of a part to r.Path; with a suffix, the one beside it whose name ends with that, ".minisig". That there
	// is none is an error that is fs.ErrNotExist, or a *fetch.StatusError of 404.
	Fetch(ctx context.Context, p journal.Part, suffix string, r fetch.Request) (fetch.Result, error)
}

// missing reports whether an error says that there is no such file.
func missing(err error) bool {
	var status *fetch.StatusError
	return errors.Is(err, fs.ErrNotExist) || errors.As(err, &status) && status.Code == http.StatusNotFound
}

// Directory is a source that somebody put together: files under the names of a BK-CI server, of its package, or of a home.
type Directory struct {
	Dir          string
	GOOS, GOARCH string // of this machine
}

// Fetch copies the file, with everything that is checked of a download.
func (d Directory) Fetch(ctx context.Context, p journal.Part, suffix string, r fetch.Request) (fetch.Result, error) {
	path, ok := d.find(p)
	if !ok {
		return fetch.Result{}, fmt.Errorf("fetch %s: not in %s: %w", r.Name, d.Dir, fs.ErrNotExist)
	}
	r.ETag = ""
	return fetch.File(ctx, r, func(context.Context, int64, string) (*http.Response, error) { return openFile(path + suffix) })
}

// openFile is a file as the answer of a server.
func openFile(path string) (*http.Response, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: f, ContentLength: info.Size()}, nil
}

// find looks for the file of a part.
func (d Directory) find(p journal.Part) (path string, ok bool) {
	for _, name := range names(p, d.GOOS, d.GOARCH) {
		path := filepath.Join(d.Dir, filepath.FromSlash(name))
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, true
		}
	}
	return "", false
}

// Offers is what the directory has for this machine. An upgrader or daemon without an agent is nothing by itself.
func (d Directory) Offers() Order {
	has := func(p journal.Part) bool {
		_, ok := d.find(p)
		return ok
	}
	return Order{Agent: has(journal.Agent), Native: has(journal.Native), Worker: has(journal.Worker), JDK: has(journal.JDK),
		JDK17: has(journal.JDK17), Init: has(journal.Init)}
}
