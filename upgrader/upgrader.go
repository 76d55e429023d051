package upgrader

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/fetch"
	"github.com/devops-agent/devops-agent/upgrader/journal"
	"github.com/devops-agent/devops-agent/upgrader/trust"
)

// Upgrader gets new parts for an installation and has them put into place.
type Upgrader struct {
	Inst         *service.Installation
	Journal      *journal.Journal
	GOOS, GOARCH string // of this machine
	Policy       trust.Policy
	MaxBytes     int64                            // that one download may have; 0 for fetch.DefaultMaxBytes
	Stall, Limit time.Duration                    // of one download; 0 for those of package fetch
	Free         func(dir string) (uint64, error) // bytes that may be written there
	Log          *slog.Logger

	Checking func(what string) // told once everything is fetched and is about to be tried; may be nil

	// JarVersion asks a worker jar for its version by a java program; "" when it tells none (protocol §3.3).
	JarVersion func(ctx context.Context, java, jar string) string
}

// Installed is what the parts in use are, as far as it is not the same everywhere.
type Installed struct {
	JDKDir, JDK17Dir string // as configured; they need not exist
	Agent            string // version that runs
	Worker           string // version, "" when unknown
	JDK              string // its third line, "" when unknown (protocol §1.6.3)
}

// Inventory is what is here.
type Inventory struct {
	Installed
	live map[journal.Part]string // place of each part below home, with slashes
	sums map[journal.Part]string // MD5 of each file that is there
}

// TakeStock looks at what is here. It reads every program once.
func (u *Upgrader) TakeStock(now Installed) (*Inventory, error) {
	inv := &Inventory{Installed: now, live: map[journal.Part]string{}, sums: map[journal.Part]string{}}
	for _, p := range []journal.Part{journal.Agent, journal.Daemon, journal.Native, journal.Upgrader, journal.Worker, journal.Init} {
		inv.live[p] = journal.Place(p, u.GOOS)
		sum, err := sumOf(u.Inst.Path(inv.live[p]), md5.New())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("take stock of %s: %w", u.Inst.Home, err)
		}
		inv.sums[p] = sum
	}
	inv.live[journal.JDK] = u.jdkPlace(now.JDKDir, journal.JDK)
	inv.live[journal.JDK17] = u.jdkPlace(now.JDK17Dir, journal.JDK17)
	return inv, nil
}

// Has reports whether the file of a part is there.
func (i *Inventory) Has(p journal.Part) bool { return i.sums[p] != "" }

// Java is the java program that the worker in use is started with: of JDK 17 where there is one (protocol §3.6.4).
func (i *Inventory) java(java func(root string) string) string {
	for _, dir := range []string{i.JDK17Dir, i.JDKDir} {
		if dir == "" {
			continue
		}
		if info, err := os.Stat(java(dir)); err == nil && info.Mode().IsRegular() {
			return java(dir)
		}
	}
	return ""
}

// JDK directories in home that may be replaced: those that either generation of the original makes, and ours (protocol §2.1, §4.5).
var (
	jdkNames   = regexp.MustCompile(`^(jdk|jre|jdk_?[0-9]+)$`)
	jdk17Names = regexp.MustCompile(`^jdk17([-_][0-9]+)?$`)
)

// jdkPlace is where a JDK is replaced: the configured directory when it lies in home under a name that is made for one, else
// the usual one. Somebody else's directory is left alone.
func (u *Upgrader) jdkPlace(configured string, p journal.Part) string {
	known := jdkNames
	if p == journal.JDK17 {
		known = jdk17Names
	}
	name := filepath.Base(configured)
	if configured != "" && filepath.Dir(filepath.Clean(configured)) == filepath.Clean(u.Inst.Home) && known.MatchString(name) {
		return name
	}
	return journal.Place(p, u.GOOS)
}

// sumOf is the digest of a file in lower-case hex.
func sumOf(path string, h hash.Hash) (_ string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func sha256Of(path string) (string, error) { return sumOf(path, sha256.New()) }

// floor is the file of the oldest versions accepted here.
func (u *Upgrader) floor() (*trust.Floor, error) {
	return trust.OpenFloor(u.Inst.Path("upgrade", "floor.json"))
}

// incoming is where downloads are until they are known to be good: below tmp/, so that what lies in tmp/ itself is never anything
// else. The worker's jar is restored from there (protocol §3.6.3).
func (u *Upgrader) incoming(names ...string) string {
	return u.Inst.Path(append([]string{"tmp", "incoming"}, names...)...)
}

// request bounds what is fetched.
func (u *Upgrader) request(name, path string) fetch.Request {
	return fetch.Request{Name: name, Path: path, MaxBytes: u.MaxBytes, Stall: u.Stall, Limit: u.Limit, Free: u.Free}
}

func md5Of(path string) (string, error) { return sumOf(path, md5.New()) }
