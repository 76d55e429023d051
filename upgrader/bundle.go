package upgrader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/devops-agent/devops-agent/upgrader/fetch"
	"github.com/devops-agent/devops-agent/upgrader/journal"
	"github.com/devops-agent/devops-agent/upgrader/swap"
	"github.com/devops-agent/devops-agent/upgrader/unpack"
)

// Bundle is what somebody wants installed: a file, a directory, or an address.
type Bundle struct {
	From         string // path, or an address with http:// or https://
	GOOS, GOARCH string // of this machine
	HTTP         *http.Client
	Signed       bool // files without a signature are refused anyway, so that an address may be http://
	Free         func(dir string) (uint64, error)
}

// IsAddress reports whether a bundle is to be fetched from a server.
func IsAddress(from string) bool {
	lower := strings.ToLower(from)
	return strings.HasPrefix(lower, "http://") || strings.HasPrefix(lower, "https://")
}

// EmptyError: there is nothing for this machine in a bundle.
type EmptyError struct{ From, System string }

// Error names it.
func (e *EmptyError) Error() string {
	return "nothing for this machine (" + e.System + ") in " + e.From
}

// Hint says what is known.
func (e *EmptyError) Hint() string {
	return "known are BK-CI's names, as devopsAgent_linux_arm64, upgrade/devopsAgent.exe or jre/macos/jdk17.zip, those of its agent.zip, and those of a " +
		"home, as devopsAgent, worker-agent.jar, jdk17.zip; a directory or a zip may hold several"
}

// PlainError: programs would come over a line that anybody can change.
type PlainError struct{ From string }

// Error names the address.
func (e *PlainError) Error() string { return e.From + " is not https, and signatures are not required" }

// Hint says what to do.
func (e *PlainError) Hint() string {
	return "take an https:// address, or set trust.keys and trust.require = true in agent.toml"
}

// Collect copies what a bundle has for this machine into dir, which must not exist, under the names that [Directory] knows, with
// signatures. After an error dir is gone.
func (b Bundle) Collect(ctx context.Context, dir string) (err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("collect what is in %s: %w", b.From, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, swap.Real().Remove(dir))
		}
	}()
	from := b.From
	if IsAddress(from) {
		if from, err = b.download(ctx, filepath.Join(dir, "download")); err != nil {
			return err
		}
	}
	info, err := os.Stat(from)
	if err != nil {
		return fmt.Errorf("collect what is in %s: %w", b.From, err)
	}
	switch {
	case info.IsDir():
		err = b.collect(ctx, from, dir)
	case b.partOf(filepath.Base(from)) != "":
		err = b.copy(ctx, from, filepath.Join(dir, b.partOf(filepath.Base(from))))
	default:
		inner := filepath.Join(dir, "unpacked")
		if err = unpack.Into(ctx, from, inner, unpack.Limits{}); err == nil {
			err = b.collect(ctx, b.top(inner), dir)
		}
	}
	if err != nil {
		return err
	}
	for _, scratch := range []string{"download", "unpacked"} {
		if err := swap.Real().Remove(filepath.Join(dir, scratch)); err != nil {
			return err
		}
	}
	if !(Directory{dir, b.GOOS, b.GOARCH}).Offers().Any() {
		return &EmptyError{b.From, b.GOOS + "/" + b.GOARCH}
	}
	return nil
}

// top is an unpacked archive, or the only directory in it.
func (b Bundle) top(dir string) string {
	if (Directory{dir, b.GOOS, b.GOARCH}).Offers().Any() {
		return dir
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) == 1 && entries[0].IsDir() {
		return filepath.Join(dir, entries[0].Name())
	}
	return dir
}

// partOf is the name in tmp/ of the part that a file's name stands for, "" when it stands for none.
func (b Bundle) partOf(name string) string {
	for _, p := range allParts() {
		for _, known := range names(p, b.GOOS, b.GOARCH) {
			if path.Base(known) == name {
				return localName(p, b.GOOS)
			}
		}
	}
	return ""
}

func allParts() []journal.Part {
	return []journal.Part{journal.Upgrader, journal.Daemon, journal.Agent, journal.Native, journal.Worker, journal.JDK, journal.JDK17, journal.Init}
}

// collect copies what is known from one directory into another.
func (b Bundle) collect(ctx context.Context, from, dir string) error {
	source := Directory{from, b.GOOS, b.GOARCH}
	for _, p := range allParts() {
		if file, ok := source.find(p); ok {
			if err := b.copy(ctx, file, filepath.Join(dir, localName(p, b.GOOS))); err != nil {
				return err
			}
		}
	}
	return nil
}

// copy copies one file and its signature, if there is one.
func (b Bundle) copy(ctx context.Context, from, to string) error {
	for _, suffix := range []string{"", sigSuffix} {
		r := fetch.Request{Name: filepath.Base(from) + suffix, Path: to + suffix, Free: b.Free}
		_, err := fetch.File(ctx, r, func(context.Context, int64, string) (*http.Response, error) { return openFile(from + suffix) })
		if err != nil && (suffix == "" || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// download fetches the file at an address, and its signature if there is one, into a new directory.
func (b Bundle) download(ctx context.Context, dir string) (string, error) {
	address, err := url.Parse(b.From)
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w", b.From, err)
	}
	name := path.Base(address.Path)
	switch {
	case strings.EqualFold(address.Scheme, "http") && !b.Signed:
		return "", &PlainError{address.Redacted()}
	case !filepath.IsLocal(name) || strings.ContainsAny(name, `\:`) || name == "." || name == "/":
		return "", fmt.Errorf("fetch %s: the address does not end with the name of a file", address.Redacted())
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	get := func(suffix string) error {
		there := *address
		there.Path += suffix
		there.RawPath = ""
		_, err := fetch.File(ctx, fetch.Request{Name: name + suffix, Path: filepath.Join(dir, name+suffix), Free: b.Free},
			func(ctx context.Context, offset int64, _ string) (*http.Response, error) {
				q, err := http.NewRequestWithContext(ctx, http.MethodGet, there.String(), nil)
				if err != nil {
					return nil, err
				}
				q.Header.Set("Accept-Encoding", "identity")
				if offset > 0 {
					q.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
				}
				return b.HTTP.Do(q)
			})
		return err
	}
	if err := get(""); err != nil {
		return "", err
	}
	if b.partOf(name) != "" {
		if err := get(sigSuffix); err != nil && !missing(err) {
			return "", err
		}
	}
	return filepath.Join(dir, name), nil
}
