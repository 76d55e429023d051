package controller

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// storedArtifact is a row of the table artifact.
type storedArtifact struct {
	build        int64
	name, digest string
}

// storedArtifacts reads rows.
func (s *Server) storedArtifacts(query string, args ...any) (list []storedArtifact, err error) {
	err = s.store.each(func(scan func(...any) error) error {
		var a storedArtifact
		if err := scan(&a.build, &a.name, &a.digest); err != nil {
			return err
		}
		list = append(list, a)
		return nil
	}, `SELECT build, name, sha256 FROM artifact `+query, args...)
	return list, err
}

// inUse are the numbers of builds whose artifacts are not to be removed: those that are under way, and all of a run that is.
func (s *Server) inUse() map[int64]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	busy := make(map[int64]bool)
	for _, b := range s.builds {
		if !b.State.Over() {
			busy[b.Number] = true
		}
	}
	for _, r := range s.runs {
		for _, j := range r.Jobs {
			busy[j.Number] = true
		}
	}
	return busy
}

// artifacts removes artifacts whose time is over, and then the oldest until the others fit into limit bytes with need
// more; those of builds and runs under way stay. Then it removes archives that nobody names.
func (r *removal) artifacts(now time.Time, need int64) error {
	s := r.server
	if s.artifacts == nil {
		return nil
	}
	expired := `WHERE expires > 0 AND expires < ?1`
	before := int64(0)
	if age := s.opts.KeepArtifacts; age > 0 {
		before = millis(now.Add(-age))
		expired = `WHERE expires > 0 AND expires < ?1 OR expires = 0 AND saved < ?2`
	}
	old, err := s.storedArtifacts(expired+` ORDER BY saved`, millis(now), before)
	if err != nil {
		return err
	}
	busy := s.inUse()
	for _, a := range old {
		if !busy[a.build] {
			if err := r.artifact(a, now); err != nil {
				return err
			}
		}
	}
	if err := r.archives(now); err != nil {
		return err
	}
	limit := s.opts.AllArtifactBytes
	for s.artifacts.used()+need > limit {
		oldest, err := s.storedArtifacts(`ORDER BY saved LIMIT 1000`)
		if err != nil {
			return err
		}
		gone := 0
		for _, a := range oldest {
			if busy[a.build] {
				continue
			}
			if err := r.artifact(a, now); err != nil {
				return err
			}
			if gone++; s.artifacts.used()+need <= limit {
				return nil
			}
		}
		if gone == 0 {
			return nil // what is left is in use
		}
	}
	return nil
}

// artifact removes one artifact from the record of its build, and its archive when no other has it.
func (r *removal) artifact(a storedArtifact, now time.Time) error {
	s := r.server
	s.mu.Lock()
	for _, b := range s.builds {
		if b.Number == a.build {
			b.lose(a.name)
		}
	}
	s.mu.Unlock()
	err := s.aside(r.ctx, func(tx *sql.Tx) error {
		if _, err := tx.Exec(`UPDATE build SET doc = json_set(doc, '$.artifacts[' || (SELECT key FROM json_each(build.doc, '$.artifacts')
				WHERE json_extract(value, '$.name') = ?2) || '].gone', json('true'))
			WHERE number = ?1 AND EXISTS (SELECT 1 FROM json_each(build.doc, '$.artifacts') WHERE json_extract(value, '$.name') = ?2)`, a.build, a.name); err != nil {
			return err
		}
		_, err := tx.Exec(`DELETE FROM artifact WHERE build = ? AND name = ?`, a.build, a.name)
		return err
	})
	if err != nil {
		return err
	}
	r.artifactsGone++
	return r.archive(a.digest, now)
}

// lose notes that an artifact is gone. Call it with the lock held.
func (b *build) lose(name string) {
	list := make([]Artifact, 0, len(b.Artifacts)) // somebody may have a view of the old one
	for _, a := range b.Artifacts {
		a.Gone = a.Gone || a.Name == name
		list = append(list, a)
	}
	b.Artifacts = list
}

// archives removes archives that have no name: of builds that were removed, or that ended before they gave it one.
func (r *removal) archives(now time.Time) error {
	for _, digest := range r.server.artifacts.idle(now) {
		if err := r.archive(digest, now); err != nil {
			return err
		}
	}
	return nil
}

// archive removes an archive that no artifact names, no build under way is to get, and no build is about to name.
func (r *removal) archive(digest string, now time.Time) error {
	s := r.server
	return s.artifacts.drop(digest, now, func() (bool, error) {
		s.mu.Lock()
		for _, b := range s.builds {
			if !b.State.Over() && slices.ContainsFunc(b.Inputs, func(in wire.ArtifactItem) bool { return in.SHA256 == digest }) {
				s.mu.Unlock()
				return true, nil
			}
		}
		s.mu.Unlock()
		var used int
		err := s.store.read.QueryRowContext(r.ctx, `SELECT count(*) FROM (SELECT 1 FROM artifact WHERE sha256 = ? LIMIT 1)`, digest).Scan(&used)
		if err != nil {
			err = fmt.Errorf("read the data base: %w", err)
		}
		return used > 0, err
	})
}

// artifactRoom makes room for an archive that is about to come, or says why there is none.
func (s *Server) artifactRoom(ctx context.Context, in wire.ArtifactOffer, there bool, now time.Time) error {
	if there {
		return nil // it is only compared
	}
	if err := roomFor(s.artifacts.root.Name(), uint64(in.Size)); err != nil {
		return err
	}
	if s.artifacts.used()+in.Size > s.opts.AllArtifactBytes {
		removed := removal{server: s, ctx: ctx}
		if err := removed.artifacts(now, in.Size); err != nil {
			return err
		}
		if removed.artifactsGone > 0 {
			s.log.Info("Old artifacts were removed to make room", "artifacts", removed.artifactsGone)
		}
	}
	if used := s.artifacts.used(); used+in.Size > s.opts.AllArtifactBytes {
		return &BlobFullError{Need: in.Size, Used: used, Limit: s.opts.AllArtifactBytes}
	}
	return nil
}

// RemoveArtifact removes an artifact of a build that is over, ErrNotFound when there is none.
func (s *Server) RemoveArtifact(ctx context.Context, build, name string) error {
	b, a, err := s.findArtifact(build, name)
	if err != nil {
		return err
	}
	if s.inUse()[b.Number] {
		return refusal("build #%d, or the run that it belongs to, is not over", b.Number)
	}
	removed := removal{server: s, ctx: ctx}
	return removed.artifact(storedArtifact{b.Number, a.Name, a.SHA256}, time.Now())
}
