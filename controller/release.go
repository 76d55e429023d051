package controller

import (
	"crypto/md5"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Release is a version that can be offered. Its files lie beside those of other releases, so that agents with different
// offers download different files under one name.
type Release struct {
	Version string        `json:"version"`          // what its programs print, and its agents report
	Worker  string        `json:"worker,omitempty"` // version of its worker-agent.jar; "" when it has none
	JDK     string        `json:"jdk,omitempty"`    // third line of java -version of its JDK; "" when it has none
	AddedAt int64         `json:"addedAt"`          // milliseconds since 1970
	Files   []ReleaseFile `json:"files"`            // by name
}

// ReleaseFile is one file of a release.
type ReleaseFile struct {
	Name   string `json:"name"` // as agents ask for it (protocol §1.6.6); a signature has .minisig after it
	SHA256 string `json:"sha256"`
	MD5    string `json:"md5"`
	Size   int64  `json:"size"` // bytes
}

// NewRelease is what a release is made from. Its files have been uploaded before.
type NewRelease struct {
	Version string `json:"version"`
	Worker  string `json:"worker,omitempty"` // Version when empty and there is a worker-agent.jar
	JDK     string `json:"jdk,omitempty"`
	Files   []struct {
		Name   string `json:"name"`
		SHA256 string `json:"sha256"`
	} `json:"files"`
}

// Bounds of an upload: a JDK has about 200 MB, a signature a few hundred bytes.
const (
	maxObject    = 4 << 30
	maxSignature = 16 << 10
	signature    = ".minisig"
)

var (
	// programName are the programs of one platform, storedName everything that an agent may ask for by name.
	programName = regexp.MustCompile(`^upgrade/(devopsAgent|devopsDaemon|devopsWorker|upgrader)(_(?:linux|macos)(?:_arm64)?|_linux_mips64|\.exe)$`)
	jdkName     = regexp.MustCompile(`^jre/((?:linux|macos)(?:_arm64)?|linux_mips64|windows)/(jre|jdk17)\.zip$`)
	scriptName  = regexp.MustCompile(`^script/(linux|macos|windows)/agent_docker_init\.sh$`)
	releaseName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$`)
	objectName  = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func storedName(name string) bool {
	name = strings.TrimSuffix(name, signature)
	return name == workerFile || programName.MatchString(name) || jdkName.MatchString(name) || scriptName.MatchString(name)
}

// StoreName finds the name by which agents ask for a file (protocol §1.6.6) in its own name, or in the end of its path:
// build/devopsAgent_linux is upgrade/devopsAgent_linux, and downloads/jre/linux/jdk17.zip is jre/linux/jdk17.zip. It
// returns "" when there is none. Separators are slashes.
func StoreName(file string) string {
	parts := strings.Split(path.Clean(file), "/")
	for i := range parts {
		if name := strings.Join(parts[i:], "/"); storedName(name) {
			return name
		}
	}
	base := parts[len(parts)-1]
	for _, folder := range []string{"upgrade/", "jar/"} {
		if storedName(folder + base) {
			return folder + base
		}
	}
	return ""
}

// parts are what can be upgraded one by one.
type parts uint8

const (
	agentPart parts = 1 << iota
	workerPart
	jdkPart
	dockerPart
)

// publication is what is published for one platform. Empty members are not.
type publication struct {
	agent, worker, jdk string
	dockerInit         string // MD5
}

// each calls f for every part and its text.
func (p *publication) each(f func(part parts, text *string)) {
	f(agentPart, &p.agent)
	f(workerPart, &p.worker)
	f(jdkPart, &p.jdk)
	f(dockerPart, &p.dockerInit)
}

func (p publication) parts() (set parts) {
	p.each(func(part parts, text *string) {
		if *text != "" {
			set |= part
		}
	})
	return set
}

// only keeps some parts.
func (p publication) only(set parts) publication {
	p.each(func(part parts, text *string) {
		if set&part == 0 {
			*text = ""
		}
	})
	return p
}

// under fills the gaps of p with what lies beneath it.
func (p publication) under(beneath publication) publication {
	gaps := beneath.only(^p.parts())
	return publication{p.agent + gaps.agent, p.worker + gaps.worker, p.jdk + gaps.jdk, p.dockerInit + gaps.dockerInit}
}

// jdkDiffers is the rule of protocol §4.1 for a JDK.
func jdkDiffers(lines []string, published string) bool {
	return len(lines) == 0 || len(lines) > 2 && strings.TrimSpace(lines[2]) != published
}

// differs says which of the published parts an agent has not (protocol §4.1).
func (p publication) differs(in wire.UpgradeCheck) wire.UpgradeItem {
	return wire.UpgradeItem{
		Agent:          p.agent != "" && in.GoAgentVersion != p.agent,
		Worker:         p.worker != "" && in.WorkerVersion != p.worker,
		JDK:            p.jdk != "" && jdkDiffers(in.JDKVersion, p.jdk),
		DockerInitFile: p.dockerInit != "" && in.DockerInit.NeedUpgrade && in.DockerInit.FileMD5 != p.dockerInit,
	}
}

// release is a Release with its files by name.
type release struct {
	Release
	files    map[string]ReleaseFile
	programs bool // for at least one platform
	known    map[platform]publication
}

func newRelease(r Release) *release {
	made := &release{Release: r, files: make(map[string]ReleaseFile, len(r.Files)), known: make(map[platform]publication)}
	for _, f := range r.Files {
		made.files[f.Name] = f
		made.programs = made.programs || programName.MatchString(f.Name)
	}
	return made
}

func (r *release) has(name string) bool { _, found := r.files[name]; return found }

// platform is a system and an architecture as an agent reports them.
type platform struct{ system, arch string }

// published is what a release has for a platform. One with programs is nothing to a platform whose programs it lacks: an
// agent does not get half of a version. Call it with the server's lock held.
func (r *release) published(system, arch string) publication {
	if r == nil || system == "" {
		return publication{}
	}
	on := platform{system, arch}
	p, known := r.known[on]
	if !known {
		if len(r.known) >= maxPlatforms {
			clear(r.known) // agents say what they like
		}
		p = r.publish(on)
		r.known[on] = p
	}
	return p
}

// maxPlatforms bounds what is remembered of platforms; there are seven that have names (protocol §1.6.6).
const maxPlatforms = 64

func (r *release) publish(on platform) (p publication) {
	if r.has(programFile("devopsAgent", on.system, on.arch)) {
		p.agent = r.Version
	} else if r.programs {
		return p
	}
	if r.has(workerFile) {
		p.worker = r.Worker
	}
	if r.has(jdkFile("jdk17.zip", on.system, on.arch)) || r.has(jdkFile("jre.zip", on.system, on.arch)) {
		p.jdk = r.JDK
	}
	p.dockerInit = r.files["script/"+on.system+"/agent_docker_init.sh"].MD5
	return p
}

// owns reports whether a file is this release's business: it has it, or what it stands beside. A signature without its
// file, or one of two kinds of JDK archive, is not to come from another release.
func (r *release) owns(name string) bool {
	name = strings.TrimSuffix(name, signature)
	if m := jdkName.FindStringSubmatch(name); m != nil {
		return r.has("jre/"+m[1]+"/jre.zip") || r.has("jre/"+m[1]+"/jdk17.zip")
	}
	return r.has(name)
}

// objects is the folder of the file store that holds the files of releases, each under its SHA-256. Agents cannot name it.
const objects = "releases"

func (f *files) openObject(digest string) (*os.File, fs.FileInfo, error) {
	file, err := f.root.Open(objects + "/" + digest)
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return file, info, nil
}

// hasObject reports whether a file of releases is there.
func (f *files) hasObject(digest string) bool {
	if f == nil {
		return true // in memory there are none
	}
	_, err := f.root.Stat(objects + "/" + digest)
	return err == nil
}

// putObject stores what r holds, if it has the digest, and has it on disk before it returns.
func (f *files) putObject(digest string, r io.Reader) (object ReleaseFile, err error) {
	if err := f.root.MkdirAll(objects, 0o700); err != nil {
		return object, fmt.Errorf("store a file: %w", err)
	}
	fresh := objects + "/.upload-" + randomHex(8)
	file, err := f.root.OpenFile(fresh, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return object, fmt.Errorf("store a file: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.root.Remove(fresh)
		}
	}()
	strong, weak := sha256.New(), md5.New()
	size, err := io.Copy(io.MultiWriter(file, strong, weak), r)
	if err != nil {
		return object, fmt.Errorf("store a file: %w", errors.Join(err, file.Close()))
	}
	object = ReleaseFile{SHA256: hex.EncodeToString(strong.Sum(nil)), MD5: hex.EncodeToString(weak.Sum(nil)), Size: size}
	if object.SHA256 != digest {
		return object, errors.Join(&InputError{Err: fmt.Errorf("the file has SHA-256 %s, not %s: it changed on the way", object.SHA256, digest)}, file.Close())
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return object, fmt.Errorf("store a file: %w", err)
	}
	if err := f.root.Rename(fresh, objects+"/"+digest); err != nil {
		return object, fmt.Errorf("store a file: %w", err)
	}
	if dir, err := f.root.Open(objects); err == nil {
		_ = dir.Sync() // Windows cannot, and need not
		_ = dir.Close()
	}
	return object, nil
}

// sweepObjects removes what no release has. What cannot be removed now, because it is being downloaded, goes at the
// next start.
func (f *files) sweepObjects(used func(digest string) bool) {
	dir, err := f.root.Open(objects)
	if err != nil {
		return
	}
	names, _ := dir.Readdirnames(-1)
	_ = dir.Close()
	for _, name := range names {
		if !used(name) {
			_ = f.root.Remove(objects + "/" + name)
		}
	}
}

// loadReleases reads the releases and drops uploads that became none.
func (s *Server) loadReleases() error {
	err := s.store.each(func(scan func(...any) error) error {
		var doc string
		if err := scan(&doc); err != nil {
			return err
		}
		var r Release
		if err := json.Unmarshal([]byte(doc), &r); err != nil {
			return err
		}
		s.releases[r.Version] = newRelease(r)
		for _, f := range r.Files {
			if !s.files.hasObject(f.SHA256) {
				s.log.Warn("A file of a release is missing: add the release again", "release", r.Version, "name", f.Name)
				continue // as after a backup without files: it may be uploaded again
			}
			s.uploaded[f.SHA256] = f
		}
		return nil
	}, `SELECT doc FROM release`)
	if err == nil && s.files != nil {
		s.files.sweepObjects(func(digest string) bool { return s.uploaded[digest].SHA256 != "" })
	}
	return err
}

var errNoStore = &InputError{Err: errors.New("this controller keeps no files: it has no data directory")}

// Upload stores a file for a release and returns its digests and size. Its SHA-256 is the name under which it is kept;
// one that is there already is not read. Uploads that become part of no release are gone after the next start.
func (s *Server) Upload(digest string, r io.Reader) (ReleaseFile, error) {
	if s.files == nil {
		return ReleaseFile{}, errNoStore
	}
	if !objectName.MatchString(digest) {
		return ReleaseFile{}, &InputError{Err: fmt.Errorf("%q is no SHA-256 in lower-case hexadecimal digits", clip(digest, 80))}
	}
	if known, err := s.findUpload(digest); err == nil {
		return known, nil
	}
	object, err := s.files.putObject(digest, r)
	if err != nil {
		return ReleaseFile{}, err
	}
	s.mu.Lock()
	s.uploaded[digest] = object
	s.mu.Unlock()
	return object, nil
}

func (s *Server) findUpload(digest string) (ReleaseFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, found := s.uploaded[digest]
	if !found {
		return ReleaseFile{}, fmt.Errorf("file %q: %w", clip(digest, 64), ErrNotFound)
	}
	return ReleaseFile{SHA256: known.SHA256, MD5: known.MD5, Size: known.Size}, nil
}

// AddRelease makes a release of files that were uploaded, or adds files to one: those of another platform, as a rule. A
// file that is there already must be the same. Sets of programs that no agent could use are refused.
func (s *Server) AddRelease(n NewRelease) (Release, error) {
	if s.files == nil {
		return Release{}, errNoStore
	}
	s.mu.Lock()
	made, err := s.compose(n)
	if err != nil {
		s.mu.Unlock()
		return Release{}, &InputError{Err: err}
	}
	doc := jsonText(made.Release)
	before, again := s.releases[made.Version]
	s.releases[made.Version] = made // also keeps its files from being removed
	t := s.store.enqueue(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO release (version, doc) VALUES (?, ?) ON CONFLICT (version) DO UPDATE SET doc = excluded.doc`, made.Version, doc)
		return err
	}, nil)
	s.mu.Unlock()
	err = t.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if delete(s.releases, made.Version); again {
			s.releases[made.Version] = before
		}
		return Release{}, err
	}
	for _, r := range s.rollouts {
		if r.Version == made.Version {
			r.release = made
		}
	}
	s.log.Info("Release added", "version", made.Version, "files", len(made.Files))
	return made.Release, nil
}

// compose checks what a release would be.
func (s *Server) compose(n NewRelease) (*release, error) {
	if !releaseName.MatchString(n.Version) {
		return nil, fmt.Errorf("version %q: letters, digits and ._+- only, please: what devopsAgent version prints", clip(n.Version, 64))
	}
	for name, text := range map[string]string{"worker": n.Worker, "jdk": n.JDK} {
		if err := checkText(name, text, 500); err != nil {
			return nil, err
		}
	}
	if len(n.Files) == 0 {
		return nil, errors.New("a release needs files")
	}
	r := Release{Version: n.Version, Worker: n.Worker, JDK: strings.TrimSpace(n.JDK), AddedAt: millis(time.Now())}
	all := make(map[string]ReleaseFile)
	if before := s.releases[n.Version]; before != nil {
		r.AddedAt = before.AddedAt
		if r.Worker == "" {
			r.Worker = before.Worker
		}
		if r.JDK == "" {
			r.JDK = before.JDK
		}
		if before.Worker != "" && r.Worker != before.Worker || before.JDK != "" && r.JDK != before.JDK {
			return nil, fmt.Errorf("%s is here with another worker or JDK version: give this one another version, or remove that one first", n.Version)
		}
		for name, f := range before.files {
			all[name] = f
		}
	}
	for _, f := range n.Files {
		if !storedName(f.Name) {
			return nil, fmt.Errorf("%q is no file that agents ask for: upgrade/devopsAgent_linux, jar/worker-agent.jar, jre/linux/jdk17.zip and the like", clip(f.Name, 200))
		}
		known, found := s.uploaded[f.SHA256]
		if !found {
			return nil, fmt.Errorf("%s was not uploaded", f.Name)
		}
		if there, again := all[f.Name]; again && there.SHA256 != known.SHA256 {
			return nil, fmt.Errorf("%s is here with another %s: give this one another version, or remove that one first", n.Version, f.Name)
		}
		known.Name = f.Name
		all[f.Name] = known
	}
	for _, f := range all {
		r.Files = append(r.Files, f)
	}
	slices.SortFunc(r.Files, func(x, y ReleaseFile) int { return strings.Compare(x.Name, y.Name) })
	made := newRelease(r)
	if made.Worker == "" && made.has(workerFile) {
		made.Worker = n.Version
	}
	return made, made.complete()
}

// complete refuses sets that an agent could not use.
func (r *release) complete() error {
	archive := ""
	for _, f := range r.Files {
		if file, is := strings.CutSuffix(f.Name, signature); is {
			switch {
			case !r.has(file):
				return fmt.Errorf("%s signs a file that is not there", f.Name)
			case f.Size > maxSignature:
				return fmt.Errorf("%s is no signature: it has %d bytes", f.Name, f.Size)
			}
			continue
		}
		if f.Size == 0 {
			return fmt.Errorf("%s is empty", f.Name)
		}
		if m := programName.FindStringSubmatch(f.Name); m != nil {
			for _, program := range []string{"devopsAgent", "devopsDaemon", "upgrader"} {
				if other := "upgrade/" + program + m[2]; !r.has(other) {
					return fmt.Errorf("%s is missing: agents of a platform take devopsAgent, devopsDaemon and upgrader together", other)
				}
			}
		}
		if jdkName.MatchString(f.Name) {
			archive = f.Name
		}
	}
	switch {
	case archive != "" && r.JDK == "":
		return fmt.Errorf("%s needs its version: the third line of its java -version (--jdk-version)", archive)
	case archive == "" && r.JDK != "":
		return errors.New("a JDK version without a JDK archive: jre/linux/jdk17.zip and the like")
	case r.Worker != "" && !r.has(workerFile):
		return fmt.Errorf("a worker version without %s", workerFile)
	}
	return nil
}

// Releases lists all releases, the newest first.
func (s *Server) Releases() []Release {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Release, 0, len(s.releases))
	for _, r := range s.releases {
		list = append(list, r.Release)
	}
	slices.SortFunc(list, func(x, y Release) int {
		if x.AddedAt != y.AddedAt {
			return int(min(1, max(-1, y.AddedAt-x.AddedAt)))
		}
		return strings.Compare(y.Version, x.Version)
	})
	return list
}

// RemoveRelease forgets a release and its files, unless a rollout needs it.
func (s *Server) RemoveRelease(version string) error {
	s.mu.Lock()
	if s.releases[version] == nil {
		s.mu.Unlock()
		return fmt.Errorf("release %q: %w", clip(version, 64), ErrNotFound)
	}
	if r, why := s.needs(version); r != nil {
		s.mu.Unlock()
		return &InputError{Err: fmt.Errorf("%s is needed: rollout %d %s", version, r.ID, why)}
	}
	gone := s.releases[version]
	delete(s.releases, version)
	t := s.store.enqueue(func(tx *sql.Tx) error {
		_, err := tx.Exec(`DELETE FROM release WHERE version = ?`, version)
		return err
	}, nil)
	s.mu.Unlock()
	err := t.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.releases[version] = gone
		return err
	}
	for _, f := range gone.Files {
		used := slices.ContainsFunc(s.releaseFiles(), func(other ReleaseFile) bool { return other.SHA256 == f.SHA256 })
		if !used && s.uploaded[f.SHA256].SHA256 != "" {
			delete(s.uploaded, f.SHA256)
			_ = s.files.root.Remove(objects + "/" + f.SHA256) // one that is being downloaded goes at the next start
		}
	}
	s.log.Info("Release removed", "version", version)
	return nil
}

func (s *Server) releaseFiles() (all []ReleaseFile) {
	for _, r := range s.releases {
		all = append(all, r.Files...)
	}
	return all
}

// content is an open file with its digest.
type content struct {
	*os.File
	info fs.FileInfo
	md5  string
}

// openFor opens the file that a name means to an agent: that of the topmost release that has to do with it, else the
// published one. ErrNotFound is a file that there is not.
func (s *Server) openFor(layers []*release, name string) (content, error) {
	for _, r := range layers {
		if !r.owns(name) {
			continue
		}
		f, found := r.files[name]
		if !found {
			return content{}, ErrNotFound
		}
		file, info, err := s.files.openObject(f.SHA256)
		if err != nil {
			return content{}, fmt.Errorf("open %s of release %s: %w", name, r.Version, err)
		}
		return content{file, info, f.MD5}, nil
	}
	file, info, err := s.files.open(name)
	if err != nil {
		return content{}, ErrNotFound
	}
	digest, err := s.files.md5(name, file, info)
	if err != nil {
		return content{}, fmt.Errorf("read %s: %w", name, errors.Join(err, file.Close()))
	}
	return content{file, info, digest}, nil
}

// cleanName is the name of a file as a path below the root of the file store (weakness W-52).
func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (s *Server) serveFile(w http.ResponseWriter, r *http.Request, layers []*release, name string) {
	file, err := s.openFor(layers, name)
	switch {
	case errors.Is(err, ErrNotFound):
		refuse(w, http.StatusNotFound, "no such file")
		return
	case err != nil:
		s.log.Error("A file could not be read", "path", name, "err", err)
		refuse(w, http.StatusInternalServerError, "the file could not be read")
		return
	}
	defer func() { _ = file.Close() }()
	w.Header().Set(wire.HeaderMD5, file.md5)
	w.Header().Set("ETag", `"`+file.md5+`"`)
	if tag := r.URL.Query().Get("eTag"); tag != "" && strings.EqualFold(tag, file.md5) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	attachment(w, path.Base(name))
	http.ServeContent(w, r, "", file.info.ModTime(), file)
}
