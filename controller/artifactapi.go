package controller

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// artifactStall ends a transfer of an artifact in which nothing moves for so long.
const artifactStall = 2 * time.Minute

// artifactRoutes adds the calls of our worker about artifacts. Others do not know them.
func (s *Server) artifactRoutes(mux *http.ServeMux, prefix string) {
	mux.HandleFunc("POST "+prefix, s.offerArtifact)
	mux.HandleFunc("PUT "+prefix+"/{digest}", s.takeArtifact)
	mux.HandleFunc("GET "+prefix+"/{digest}", s.giveArtifact)
}

// artifactRefused says no to a worker, in words that its step will have as its message.
func artifactRefused(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	var input *InputError
	var full *BlobFullError
	var disk *diskError
	var space *SpaceError
	switch {
	case errors.As(err, &input):
		code = http.StatusBadRequest
	case errors.Is(err, ErrNotFound):
		code = http.StatusNotFound
	case errors.As(err, &full), errors.As(err, &disk), errors.As(err, &space):
		code = http.StatusInsufficientStorage
	}
	answer(w, code, workerAnswer{Status: code, ErrorCode: code, Message: err.Error()})
}

// saving is the running step of a build that saves the artifact of an offer. Call it with the lock held.
func (b *build) saving(in wire.ArtifactOffer) (*ArtifactSpec, error) {
	i := slices.IndexFunc(b.Steps, func(t StepState) bool { return t.Task == in.TaskID })
	if i >= 0 && b.Steps[i].State == Running {
		if _, save := b.step(i); save != nil && save.Name == in.Name {
			return save, nil
		}
	}
	return nil, refusal("artifact %q is not what this build is saving", clip(in.Name, 100))
}

// allowed holds an offer against the limits. Call it with the lock held.
func (s *Server) allowed(b *build, in wire.ArtifactOffer) error {
	if !objectName.MatchString(in.SHA256) || in.Size <= 0 || in.Bytes < 0 || in.Entries <= 0 {
		return refusal("artifact %s: its digest, size and number of files, please", in.Name)
	}
	amount := max(in.Size, in.Bytes)
	all := amount
	for _, a := range b.Artifacts {
		if a.Name != in.Name {
			all += max(a.Size, a.Bytes)
		}
	}
	switch {
	case in.Entries > maxArtifactEntries:
		return refusal("artifact %s: more than %d files, folders and links", in.Name, maxArtifactEntries)
	case amount > s.opts.ArtifactBytes:
		return refusal("artifact %s has %s; one may have %s (serve --artifact-max)", in.Name, megabytes(uint64(amount)), megabytes(uint64(s.opts.ArtifactBytes)))
	case all > s.opts.BuildArtifactBytes:
		return refusal("the artifacts of the build have %s; those of one build may have %s (serve --build-artifacts-max)", megabytes(uint64(all)), megabytes(uint64(s.opts.BuildArtifactBytes)))
	}
	return nil
}

// offerArtifact is POST …/artifacts: a worker has packed an artifact. When its archive is there, it is the build's from
// now on; otherwise the worker is to send it and offer it again. Repeating it changes nothing.
func (s *Server) offerArtifact(w http.ResponseWriter, r *http.Request) {
	var in wire.ArtifactOffer
	data, whole := readBody(w, r)
	if !whole {
		return
	}
	if err := decode(data, &in, "taskId", "name", "sha256", "size"); err != nil {
		artifactRefused(w, &InputError{Err: err})
		return
	}
	_, b := s.session(r)
	if b == nil {
		buildEnded(w)
		return
	}
	now := time.Now()
	s.mu.Lock()
	if b.State != Running {
		s.mu.Unlock()
		buildEnded(w)
		return
	}
	b.beat = now
	save, err := b.saving(in)
	if err == nil {
		err = s.allowed(b, in)
	}
	s.mu.Unlock()
	if err == nil && s.artifacts == nil {
		err = errNoStore
	}
	if err != nil {
		artifactRefused(w, err)
		return
	}
	there, sent := s.artifacts.touch(b.Project, b.ID, in.SHA256, now)
	if there && !sent { // it is the project's own, or must be sent to show that it is known
		var known int
		err := s.store.read.QueryRowContext(r.Context(), `SELECT count(*) FROM (SELECT 1 FROM artifact WHERE sha256 = ? AND project = ? LIMIT 1)`, in.SHA256, b.Project).Scan(&known)
		if err != nil {
			artifactRefused(w, err)
			return
		}
		sent = known > 0
	}
	if !there || !sent {
		s.mu.Lock()
		b.offered = in
		s.mu.Unlock()
		if err := s.artifactRoom(r.Context(), in, there, now); err != nil {
			artifactRefused(w, err)
			return
		}
		ok(w, wire.ArtifactReply{})
		return
	}
	if err := s.keepArtifact(b, in, save, now); err != nil {
		if errors.Is(err, errOver) {
			buildEnded(w)
			return
		}
		artifactRefused(w, err)
		return
	}
	ok(w, wire.ArtifactReply{Stored: true})
}

// errOver says that a build has ended meanwhile.
var errOver = errors.New("the build is over")

// keepArtifact makes an archive that is there an artifact of the build, on disk when it returns.
func (s *Server) keepArtifact(b *build, in wire.ArtifactOffer, save *ArtifactSpec, now time.Time) error {
	a := Artifact{Name: in.Name, SHA256: in.SHA256, Size: in.Size, Bytes: in.Bytes, Entries: in.Entries, SavedAt: millis(now)}
	if save.Keep > 0 {
		a.ExpiresAt = millis(now.Add(time.Duration(save.Keep)))
	}
	s.mu.Lock()
	if b.State != Running {
		s.mu.Unlock()
		return errOver
	}
	if err := s.allowed(b, in); err != nil { // another one may have been saved
		s.mu.Unlock()
		return err
	}
	if i := slices.IndexFunc(b.Artifacts, func(old Artifact) bool { return old.Name == in.Name }); i < 0 {
		b.Artifacts = append(b.Artifacts, a)
	} else if b.Artifacts[i].SHA256 != a.SHA256 {
		b.Artifacts = slices.Clone(b.Artifacts) // somebody may have a view of it
		b.Artifacts[i] = a
	} else {
		a = b.Artifacts[i]
	}
	b.offered = wire.ArtifactOffer{}
	b.notify()
	number, project := b.Number, b.Project
	row := s.store.enqueue(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO artifact (build, name, project, sha256, size, saved, expires) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (build, name) DO UPDATE SET sha256 = excluded.sha256, size = excluded.size, saved = excluded.saved, expires = excluded.expires`,
			number, a.Name, project, a.SHA256, a.Size, a.SavedAt, a.ExpiresAt)
		return err
	}, nil)
	doc := s.save(b)
	s.mu.Unlock()
	if err := errors.Join(row.wait(), doc.wait()); err != nil {
		return &diskError{err}
	}
	s.artifacts.named(b.ID, a.SHA256)
	s.log.Info("Artifact saved", "build", b.ID, "name", a.Name, "size", a.Size, "sha256", a.SHA256)
	return nil
}

// takeArtifact is PUT …/artifacts/{digest}: the archive of what the build has offered.
func (s *Server) takeArtifact(w http.ResponseWriter, r *http.Request) {
	_, b := s.session(r)
	if b == nil {
		buildEnded(w)
		return
	}
	digest := r.PathValue("digest")
	s.mu.Lock()
	running, offered := b.State == Running, b.offered
	s.mu.Unlock()
	switch {
	case !running:
		buildEnded(w)
		return
	case offered.SHA256 != digest || s.artifacts == nil:
		refuse(w, http.StatusServiceUnavailable, "offer it first") // it was, perhaps, before the controller was started
		return
	case r.ContentLength != offered.Size:
		artifactRefused(w, refusal("artifact %s: not the %d bytes that were offered", offered.Name, offered.Size))
		return
	}
	body := &paced{r: r.Body, control: http.NewResponseController(w)}
	done, err := s.artifacts.reserve(digest, offered.Size, s.opts.AllArtifactBytes)
	if err == nil {
		err = s.artifacts.put(b.Project, digest, offered.Size, body)
		done()
	}
	if err != nil {
		var disk *diskError
		if errors.As(err, &disk) {
			s.log.Error("An artifact could not be stored", "build", b.ID, "name", offered.Name, "err", err)
		}
		_, _ = io.Copy(io.Discard, body) // who still sends would not hear the answer
		artifactRefused(w, err)
		return
	}
	ok(w, true)
}

// giveArtifact is GET …/artifacts/{digest}: an archive of those that the build gets.
func (s *Server) giveArtifact(w http.ResponseWriter, r *http.Request) {
	_, b := s.session(r)
	if b == nil {
		buildEnded(w)
		return
	}
	digest := r.PathValue("digest")
	s.mu.Lock()
	running := b.State == Running
	wanted := slices.ContainsFunc(b.Inputs, func(in wire.ArtifactItem) bool { return in.SHA256 == digest })
	s.mu.Unlock()
	switch {
	case !running:
		buildEnded(w)
		return
	case !wanted:
		artifactRefused(w, fmt.Errorf("artifact %q: %w", clip(digest, 64), ErrNotFound))
		return
	}
	file, err := s.artifacts.open(digest)
	if err != nil {
		artifactRefused(w, err)
		return
	}
	defer func() { _ = file.Close() }()
	serveArchive(w, r, file)
}

// serveArchive answers with an archive, or a range of it.
func serveArchive(w http.ResponseWriter, r *http.Request, file io.ReadSeeker) {
	w.Header().Set("Content-Type", "application/gzip")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	control := http.NewResponseController(w)
	http.ServeContent(&pacedWriter{w, control}, r, "", time.Time{}, file)
	_ = control.SetWriteDeadline(time.Time{}) // it does not count for what comes next on this connection
}

// paced reads a body whose sender may take long, but not fall silent.
type paced struct {
	r       io.Reader
	control *http.ResponseController
}

// Read reads a part within artifactStall.
func (p *paced) Read(data []byte) (int, error) {
	_ = p.control.SetReadDeadline(time.Now().Add(artifactStall)) // in memory there is none
	n, err := p.r.Read(data)
	if errors.Is(err, io.EOF) {
		_ = p.control.SetReadDeadline(time.Time{}) // what is left to do takes its time
	}
	return n, err
}

// pacedWriter is the same for those who read.
type pacedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

// Write writes a part within artifactStall.
func (p *pacedWriter) Write(data []byte) (int, error) {
	_ = p.control.SetWriteDeadline(time.Now().Add(artifactStall))
	return p.ResponseWriter.Write(data)
}

// ListedArtifact is an artifact in a list of those of several builds.
type ListedArtifact struct {
	Artifact
	Build     string `json:"build"` // its id
	Number    int64  `json:"number"`
	BuildName string `json:"buildName"`
	Project   string `json:"project"`
}

// Artifacts lists the artifacts of a build, ErrNotFound when there is no such build.
func (s *Server) Artifacts(build string) ([]ListedArtifact, error) {
	b, err := s.FindBuild(build)
	if err != nil {
		return nil, err
	}
	return listed(b), nil
}

func listed(b Build) []ListedArtifact {
	list := make([]ListedArtifact, 0, len(b.Artifacts))
	for _, a := range b.Artifacts {
		list = append(list, ListedArtifact{Artifact: a, Build: b.ID, Number: b.Number, BuildName: b.Name, Project: b.Project})
	}
	return list
}

// NewestArtifacts lists the artifacts that are there, the newest first, at most limit of them; with a run, those of its
// builds in the order of its file.
func (s *Server) NewestArtifacts(run string, limit int) ([]ListedArtifact, error) {
	list := []ListedArtifact{}
	if run != "" {
		found, err := s.FindRun(run)
		if err != nil {
			return nil, err
		}
		for _, j := range found.Jobs {
			b, err := s.FindBuild(j.Build)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			list = append(list, listed(b)...)
		}
		return list, nil
	}
	err := s.store.each(func(scan func(...any) error) error {
		var name, doc string
		if err := scan(&name, &doc); err != nil {
			return err
		}
		var b Build
		if err := json.Unmarshal([]byte(doc), &b); err != nil {
			return err
		}
		for _, a := range listed(b) {
			if a.Name == name {
				list = append(list, a)
			}
		}
		return nil
	}, `SELECT a.name, b.doc FROM artifact a JOIN build b ON b.number = a.build ORDER BY a.saved DESC, a.build DESC, a.name LIMIT ?`, limit)
	return list, err
}

// findArtifact returns an artifact of a build that is there.
func (s *Server) findArtifact(build, name string) (Build, Artifact, error) {
	b, err := s.FindBuild(build)
	if err != nil {
		return b, Artifact{}, err
	}
	i := slices.IndexFunc(b.Artifacts, func(a Artifact) bool { return a.Name == name })
	switch {
	case i < 0:
		return b, Artifact{}, fmt.Errorf("artifact %q of build #%d: %w", clip(name, 100), b.Number, ErrNotFound)
	case b.Artifacts[i].Gone:
		return b, Artifact{}, fmt.Errorf("artifact %s of build #%d was removed: %w", name, b.Number, ErrNotFound)
	}
	return b, b.Artifacts[i], nil
}

// artifactCalls adds the operator's calls about artifacts.
func (s *Server) artifactCalls(route func(pattern string, h http.HandlerFunc)) {
	route("GET /artifacts", func(w http.ResponseWriter, r *http.Request) {
		limit, err := queryInt(r, "limit", 50)
		if err != nil {
			operatorError(w, err)
			return
		}
		list, err := s.NewestArtifacts(r.URL.Query().Get("run"), int(min(limit, 1000)))
		reply(w, list, err)
	})
	route("GET /builds/{id}/artifacts", func(w http.ResponseWriter, r *http.Request) {
		list, err := s.Artifacts(r.PathValue("id"))
		reply(w, list, err)
	})
	route("GET /builds/{id}/artifacts/{name}", s.downloadArtifact)
	route("DELETE /builds/{id}/artifacts/{name}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, s.RemoveArtifact(r.Context(), r.PathValue("id"), r.PathValue("name")))
	})
}

// downloadArtifact is GET /builds/{id}/artifacts/{name}: the archive.
func (s *Server) downloadArtifact(w http.ResponseWriter, r *http.Request) {
	b, a, err := s.findArtifact(r.PathValue("id"), r.PathValue("name"))
	if err != nil {
		operatorError(w, err)
		return
	}
	file, err := s.artifacts.open(a.SHA256)
	if err != nil {
		operatorError(w, fmt.Errorf("artifact %s of build #%d: %w", a.Name, b.Number, err))
		return
	}
	defer func() { _ = file.Close() }()
	attachment(w, cmp.Or(notInFolder.ReplaceAllString(clip(b.Name, 60), "_"), "build")+"-"+strconv.FormatInt(b.Number, 10)+"-"+a.Name+".tar.gz")
	w.Header().Set("ETag", `"`+a.SHA256+`"`)
	serveArchive(w, r, file)
}
