package upgrader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/upgrader/fetch"
	"github.com/devops-agent/devops-agent/upgrader/journal"
	"github.com/devops-agent/devops-agent/upgrader/swap"
	"github.com/devops-agent/devops-agent/upgrader/trust"
	"github.com/devops-agent/devops-agent/upgrader/unpack"
)

// sigSuffix is that of the file with the signature of another one.
const sigSuffix = ".minisig"

// archiveNote is in a JDK that was unpacked here: the MD5 of its archive.
const archiveNote = ".upgrade-archive"

// piece is one part that was fetched and found good.
type piece struct {
	part     journal.Part
	path     string // of the file in tmp/, or of the unpacked directory
	md5      string // of the download
	version  string // for people; "" when it has none
	sig      []byte // nil when there was none
	claim    trust.Claim
	archive  string // SHA-256 of what a directory was unpacked from
	promoted bool   // it lies in tmp/ under its name
}

// PartError says why a part was given up. The other parts go on without it (protocol §4.4).
type PartError struct {
	Part journal.Part
	Err  error
}

// Error names the part.
func (e *PartError) Error() string { return string(e.Part) + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *PartError) Unwrap() error { return e.Err }

// BadError: this version was tried here and taken back.
type BadError struct{ Attempt *journal.Attempt }

// Error says when and why.
func (e *BadError) Error() string {
	return fmt.Sprintf("it was tried here in upgrade %s and taken back: %s", e.Attempt.ID, e.Attempt.Reason)
}

// Hint says how it is tried again.
func (e *BadError) Hint() string {
	return `"devopsAgent upgrade history" shows more; "devopsAgent upgrade --from FILE --force" tries it once more`
}

// ErrNoWorkerVersion: a jar tells no version, or none of the form that workers have (protocol §4.4, statement 88).
var ErrNoWorkerVersion = errors.New("the jar tells no version of a worker")

// Stage is what was fetched and checked, and differs from what is here. Nothing that is live was touched.
type Stage struct {
	up     *Upgrader
	inv    *Inventory
	pieces map[journal.Part]*piece
	byHand bool // an operator wants it

	Refused []*PartError // parts that were given up, one by one
	Same    int          // parts that are here already
}

// Any reports whether there is something to replace.
func (s *Stage) Any() bool { return len(s.pieces) > 0 }

// Programs reports whether the agent is to be replaced, which takes a restart and a trial.
func (s *Stage) Programs() bool { return s.pieces[journal.Agent] != nil }

// Upgrader is the upgrader that came with the agent, "" when none did (protocol §4.5).
func (s *Stage) Upgrader() string {
	if one := s.pieces[journal.Upgrader]; one != nil {
		return one.path
	}
	return ""
}

// String says what the stage brings, for people: "agent v1.2.4, worker v1.2.3".
func (s *Stage) String() string {
	var list []string
	for _, p := range allParts() {
		one := s.pieces[p]
		if one == nil || p == journal.Upgrader || p == journal.Daemon {
			continue
		}
		text := string(p)
		if one.version != "" {
			text += " " + one.version
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}

// Err joins the reasons of the parts that were given up, nil when there are none.
func (s *Stage) Err() error {
	errs := make([]error, len(s.Refused))
	for i, e := range s.Refused {
		errs[i] = e
	}
	return errors.Join(errs...)
}

// Prepare fetches what is ordered and checks it: digest, signature, age, and whether it runs here. Parts fail each for itself.
// The files are in tmp/ then, as the original leaves them, so that the server can say that they are not modified (protocol
// §4.4, statement 81); what was refused is gone. A version that was taken back here is refused unless forced, and so is an agent that
// an operator has left by hand when the server brings it. The error is about this machine, or the end of ctx.
func (u *Upgrader) Prepare(ctx context.Context, o Order, inv *Inventory, from Source, force bool) (*Stage, error) {
	if err := os.MkdirAll(u.incoming(), 0o700); err != nil {
		return nil, fmt.Errorf("prepare an upgrade: %w", err)
	}
	_, byHand := from.(Directory)
	s := &Stage{up: u, inv: inv, pieces: map[journal.Part]*piece{}, byHand: byHand || force}
	for _, p := range o.parts() {
		one, err := u.get(ctx, p, inv, from)
		if ctx.Err() != nil {
			s.Discard()
			return nil, context.Cause(ctx)
		}
		switch {
		case err == nil:
			s.pieces[p] = one
		case missing(err) && optional(p, from):
		default:
			s.refuse(p, err)
		}
	}
	s.whole(o)
	if u.Checking != nil && s.Any() {
		u.Checking(s.String())
	}
	s.tryAll(ctx, force)
	if ctx.Err() != nil {
		s.Discard()
		return nil, context.Cause(ctx)
	}
	return s, nil
}

// optional reports whether an agent may come without a part: from a directory, not from a server (protocol §4.4).
func optional(p journal.Part, from Source) bool {
	_, local := from.(Directory)
	return local && (p == journal.Daemon || p == journal.Upgrader)
}

func (s *Stage) refuse(p journal.Part, err error) {
	s.up.Log.Warn("Part of an upgrade given up", "part", string(p), "err", err)
	s.Refused = append(s.Refused, &PartError{p, err})
	s.drop(p)
}

// drop removes what was fetched of a part, or unpacked.
func (s *Stage) drop(p journal.Part) {
	one := s.pieces[p]
	delete(s.pieces, p)
	var errs []error
	if one != nil && isTree(p) {
		errs = append(errs, swap.Real().Remove(one.path))
	}
	name := localName(p, s.up.GOOS)
	for _, path := range []string{s.up.incoming(name), s.up.incoming(name + sigSuffix)} {
		errs = append(errs, swap.Real().Remove(path))
	}
	if err := errors.Join(errs...); err != nil {
		s.up.Log.Warn("Parts of an upgrade stay behind", "part", string(p), "err", err)
	}
}

// Discard removes what was prepared and not replaced. Good downloads stay in tmp/.
func (s *Stage) Discard() {
	for p := range s.pieces {
		s.drop(p)
	}
}

// whole gives the agent up when one of the programs that come with it could not be had (protocol §4.4).
func (s *Stage) whole(o Order) {
	if !o.Agent {
		return
	}
	refused := false
	for _, e := range s.Refused {
		refused = refused || e.Part == journal.Agent || e.Part == journal.Daemon || e.Part == journal.Upgrader
	}
	if refused || s.pieces[journal.Agent] == nil {
		s.dropPrograms()
	}
}

func (s *Stage) dropPrograms() {
	for _, p := range []journal.Part{journal.Agent, journal.Daemon, journal.Upgrader} {
		s.drop(p)
	}
}

// get fetches one part and its signature.
func (u *Upgrader) get(ctx context.Context, p journal.Part, inv *Inventory, from Source) (*piece, error) {
	name := localName(p, u.GOOS)
	path := u.incoming(name)
	etag, err := u.seed(name)
	if err != nil {
		return nil, err
	}
	r := u.request(name, path)
	r.ETag = etag
	got, err := from.Fetch(ctx, p, "", r)
	if err != nil {
		return nil, err
	}
	one := &piece{part: p, path: path, md5: got.MD5}
	if len(u.Policy.Keys) == 0 && !u.Policy.Require {
		return one, nil
	}
	if one.sig, err = u.signature(ctx, p, from); err != nil {
		return nil, err
	}
	want := trust.Target{Name: targetName(p), OS: u.GOOS, Arch: u.GOARCH}
	if one.claim, err = u.Policy.Check(path, one.sig, want); err != nil {
		return nil, err
	}
	floor, err := u.floor()
	if err != nil {
		return nil, err
	}
	return one, floor.Allows(one.claim)
}

// seed brings the last good download of a part to where the next one is put, and returns its MD5 for the server, "" when
// there is none (statement 81).
func (u *Upgrader) seed(name string) (etag string, err error) {
	last, path := u.Inst.Path("tmp", name), u.incoming(name)
	if err := swap.Real().Remove(path); err != nil {
		return "", err
	}
	info, err := os.Lstat(last)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return "", nil
	}
	if err == nil {
		err = swap.Real().Link(last, path)
	}
	if err != nil {
		return "", fmt.Errorf("take the last download of %s: %w", name, err)
	}
	return md5Of(path)
}

// signature fetches what lies beside a part. nil is none.
func (u *Upgrader) signature(ctx context.Context, p journal.Part, from Source) ([]byte, error) {
	name := localName(p, u.GOOS) + sigSuffix
	r := u.request(name, u.incoming(name))
	r.MaxBytes, r.Free = trust.MaxSignature, nil
	if err := swap.Real().Remove(r.Path); err != nil {
		return nil, err
	}
	_, err := from.Fetch(ctx, p, sigSuffix, r)
	var long *fetch.TooLongError
	switch {
	case missing(err):
		return nil, nil
	case errors.As(err, &long):
		return nil, fmt.Errorf("%w: %w", trust.ErrMalformed, err)
	case err != nil:
		return nil, err
	}
	return os.ReadFile(r.Path)
}

// tryAll looks whether what was fetched works here, and drops what is here already.
func (s *Stage) tryAll(ctx context.Context, force bool) {
	for _, p := range []journal.Part{journal.JDK, journal.JDK17} { // first: a jar is asked by java
		s.each(p, func(one *piece) (same bool, err error) { return s.tryJDK(ctx, one, force) })
	}
	s.each(journal.Worker, func(one *piece) (same bool, err error) { return s.tryWorker(ctx, one, force) })
	s.each(journal.Init, func(one *piece) (same bool, err error) { return one.md5 == s.inv.sums[journal.Init], nil })
	s.each(journal.Native, func(one *piece) (same bool, err error) {
		one.version, err = s.tryProgram(ctx, one)
		return one.md5 == s.inv.sums[journal.Native], err
	})
	if s.pieces[journal.Agent] != nil {
		s.tryAgent(ctx, force)
	}
}

// each tries one part, if there is one.
func (s *Stage) each(p journal.Part, try func(*piece) (same bool, err error)) {
	one := s.pieces[p]
	if one == nil {
		return
	}
	same, err := try(one)
	if err == nil {
		err = s.promote(one)
	}
	switch {
	case err != nil:
		s.refuse(p, err)
	case same:
		s.Same++
		s.drop(p)
	}
}

// promote puts a good download into tmp/ under its own name, with its signature.
func (s *Stage) promote(one *piece) error {
	if one.promoted {
		return nil
	}
	d, name := swap.Real(), localName(one.part, s.up.GOOS)
	last := s.up.Inst.Path("tmp", name)
	if one.sig == nil {
		if err := d.Remove(last + sigSuffix); err != nil {
			return err
		}
	} else if err := d.Rename(s.up.incoming(name+sigSuffix), last+sigSuffix); err != nil {
		return err
	}
	if err := d.Rename(s.up.incoming(name), last); err != nil {
		return err
	}
	one.promoted = true
	if !isTree(one.part) {
		one.path = last
	}
	return d.Remove(s.up.incoming(name)) // Unix leaves both names when they were of one file
}

// tryAgent tries the three programs that an agent comes as. Only another agent counts (protocol §4.4, statements 85, 86).
func (s *Stage) tryAgent(ctx context.Context, force bool) {
	one := s.pieces[journal.Agent]
	var err error
	if one.version, err = s.tryProgram(ctx, one); err != nil {
		s.refuse(journal.Agent, err)
		s.dropPrograms()
		return
	}
	if daemon := s.pieces[journal.Daemon]; daemon != nil && s.replacesDaemon() {
		if daemon.version, err = s.tryProgram(ctx, daemon); err != nil {
			s.refuse(journal.Daemon, err)
			s.dropPrograms()
			return
		}
	}
	if up := s.pieces[journal.Upgrader]; up != nil {
		err = makeExecutable(up.path)
		if err == nil && Ours(up.path) { // another one would take the word for its default, which is to upgrade
			up.version, err = s.tryProgram(ctx, up)
		}
		if err != nil {
			s.refuse(journal.Upgrader, err)
			s.dropPrograms()
			return
		}
	}
	for _, p := range []journal.Part{journal.Upgrader, journal.Daemon, journal.Agent} {
		if piece := s.pieces[p]; piece != nil {
			if err := s.promote(piece); err != nil {
				s.refuse(p, err)
				s.dropPrograms()
				return
			}
		}
	}
	if one.md5 == s.inv.sums[journal.Agent] {
		s.Same++
		s.dropPrograms()
		return
	}
	err = s.bad(one, force)
	if err == nil && !s.byHand {
		err = s.left(one)
	}
	if err != nil {
		s.refuse(journal.Agent, err)
		s.dropPrograms()
	}
}

// left refuses an agent that an operator has left by hand.
func (s *Stage) left(one *piece) error {
	attempt, err := s.up.Journal.Left(one.archive)
	if err == nil && attempt != nil {
		err = &journal.LeftError{Attempt: attempt}
	}
	return err
}

// replacesDaemon reports whether a new daemon goes live: where there is one, and on Linux only (protocol §4.6): elsewhere it is the
// service itself, or would end with what replaces it.
func (s *Stage) replacesDaemon() bool {
	return s.up.GOOS == "linux" && s.inv.Has(journal.Daemon)
}

// tryProgram asks a program for its version, which finds out whether it runs here at all.
func (s *Stage) tryProgram(ctx context.Context, one *piece) (string, error) {
	if err := makeExecutable(one.path); err != nil {
		return "", err
	}
	return Version(ctx, one.path)
}

// makeExecutable lets us run a download, and nobody else. One that we can run stays as it is: it may be of an earlier upgrade, with
// other names.
func makeExecutable(path string) error {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o100 != 0 {
		return err
	}
	return os.Chmod(path, 0o700)
}

// bad refuses what was taken back here before, or, when that is forced, forgives it.
func (s *Stage) bad(one *piece, force bool) error {
	sum, err := sha256Of(one.path)
	if err != nil {
		return err
	}
	one.archive = sum
	if force {
		return s.up.Journal.Forgive(one.part, sum)
	}
	attempt, err := s.up.Journal.Bad(one.part, sum)
	if err == nil && attempt != nil {
		err = &BadError{attempt}
	}
	return err
}

func (s *Stage) tryWorker(ctx context.Context, one *piece, force bool) (same bool, err error) {
	java := s.inv.java(func(root string) string { return unpack.Java(root, s.up.GOOS) })
	for _, p := range []journal.Part{journal.JDK17, journal.JDK} {
		if jdk := s.pieces[p]; jdk != nil && java == "" {
			java = unpack.Java(jdk.path, s.up.GOOS)
		}
	}
	if java == "" {
		return false, fmt.Errorf("%w: there is no JDK to ask it with", ErrNoWorkerVersion)
	}
	if one.version = s.up.JarVersion(ctx, java, one.path); one.version == "" {
		return false, ErrNoWorkerVersion
	}
	if one.md5 == s.inv.sums[journal.Worker] {
		return true, nil
	}
	return false, s.bad(one, force)
}

// tryJDK unpacks an archive beside the directory that it is to replace, and asks its java for its version.
func (s *Stage) tryJDK(ctx context.Context, one *piece, force bool) (same bool, err error) {
	u := s.up
	if s.sameJDK(ctx, one) {
		return true, nil
	}
	if err := s.bad(one, force); err != nil {
		return false, err
	}
	size, entries, err := unpack.Size(ctx, one.path, unpack.Limits{})
	if err != nil {
		return false, err
	}
	if err := u.room(size); err != nil {
		return false, err
	}
	fresh := u.freshDir(one.part)
	u.Log.Info("JDK is unpacked", "part", string(one.part), "path", fresh, "bytes", size, "entries", entries)
	if err := unpack.Into(ctx, one.path, fresh, unpack.Limits{}); err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, swap.Real().Remove(fresh))
		}
	}()
	root, err := unpack.JDK(fresh, u.GOOS)
	if err != nil {
		return false, err
	}
	if root != fresh { // everybody but BK-CI packs a directory
		inner := u.freshDir(one.part)
		if err := os.Rename(root, inner); err != nil {
			return false, err
		}
		outer := fresh
		fresh = inner
		if err := swap.Real().Remove(outer); err != nil {
			return false, err
		}
	}
	if err := unpack.Executable(fresh, u.GOOS); err != nil {
		return false, err
	}
	lines, err := JavaVersion(ctx, unpack.Java(fresh, u.GOOS))
	if err != nil {
		return false, err
	}
	if err := os.WriteFile(filepath.Join(fresh, archiveNote), []byte(one.md5+"\n"), 0o644); err != nil { //nolint:gosec // as the rest of it
		return false, err
	}
	if err := u.giveAway(fresh); err != nil {
		return false, err
	}
	if err := swap.SyncTree(fresh); err != nil {
		return false, err
	}
	one.version = strings.TrimSpace(lines[0])
	if err := s.promote(one); err != nil {
		return false, err
	}
	one.path = fresh
	return false, nil
}

// sameJDK reports whether the live directory was unpacked from this very archive, and works.
func (s *Stage) sameJDK(ctx context.Context, one *piece) bool {
	live := s.up.Inst.Path(s.inv.live[one.part])
	configured := s.inv.JDKDir
	if one.part == journal.JDK17 {
		configured = s.inv.JDK17Dir
	}
	text, err := os.ReadFile(filepath.Join(live, archiveNote))
	if err != nil || strings.TrimSpace(string(text)) != one.md5 || filepath.Clean(configured) != live {
		return false
	}
	_, err = JavaVersion(ctx, unpack.Java(live, s.up.GOOS))
	return err == nil
}

// room looks whether what is to be unpacked fits on the disk, with a tenth to spare.
func (u *Upgrader) room(bytes int64) error {
	if u.Free == nil {
		return nil
	}
	free, err := u.Free(u.Inst.Home)
	if err != nil {
		return err
	}
	if need := uint64(min(bytes, math.MaxInt64/2)) + uint64(bytes)/10; free < need {
		return &fetch.RoomError{Path: u.Inst.Home, Need: need, Free: free}
	}
	return nil
}

// freshDir names a new directory for a JDK: jdk17_<unix seconds> (style: old or new, never neither).
func (u *Upgrader) freshDir(p journal.Part) string {
	for at := time.Now().Unix(); ; at++ {
		path := u.Inst.Path(string(p) + "_" + strconv.FormatInt(at, 10))
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path
		}
	}
}

// items are what the journal puts into place. Their order is that of protocol §4.5.
func (s *Stage) items(parts ...journal.Part) []journal.Item {
	var list []journal.Item
	for _, p := range parts {
		one := s.pieces[p]
		if one == nil {
			continue
		}
		item := journal.Item{Part: p, From: one.path, Now: one.version}
		switch p {
		case journal.JDK, journal.JDK17:
			item.Live, item.Was, item.Archive = s.inv.live[p], s.inv.JDK, one.archive
		case journal.Agent:
			item.Was = s.inv.Agent
		case journal.Worker:
			item.Was = s.inv.Worker
		}
		list = append(list, item)
	}
	return list
}
