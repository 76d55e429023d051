package worker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/upgrader/unpack"
)

// Bounds of artifact tasks, whose parameters come from the server.
const (
	maxPatterns = 1000
	maxItems    = 100_000
	maxRatio    = 2000 // of unpacked to packed bytes; gzip cannot do better than 1032
)

// unpackPrefix begins the names of folders in the workspace into which artifacts are unpacked before they get their
// places.
const unpackPrefix = ".devops-artifact-"

// decodeSave reads the parameter of a TaskArtifactSave.
func decodeSave(text string) (save wire.ArtifactSave, err error) {
	if err := decodeArtifact(text, &save); err != nil {
		return save, err
	}
	switch {
	case !fileName(save.Name):
		return save, fmt.Errorf("artifact %q: not a name", clip(save.Name, 60))
	case len(save.Paths) == 0 || len(save.Paths) > maxPatterns || len(save.Exclude) > maxPatterns:
		return save, fmt.Errorf("artifact %s: between 1 and %d paths, please", save.Name, maxPatterns)
	case save.MaxBytes < 0 || save.MaxEntries < 0:
		return save, fmt.Errorf("artifact %s: it has no limits", save.Name)
	}
	for _, p := range slices.Concat(save.Paths, save.Exclude) {
		if _, err := parsePattern(p); err != nil {
			return save, fmt.Errorf("artifact %s: %w", save.Name, err)
		}
	}
	return save, nil
}

// decodeGet reads the parameter of a TaskArtifactGet.
func decodeGet(text string) (get wire.ArtifactGet, err error) {
	if err := decodeArtifact(text, &get); err != nil {
		return get, err
	}
	if len(get.Items) > maxItems {
		return get, fmt.Errorf("more than %d artifacts", maxItems)
	}
	for _, item := range get.Items {
		raw, err := hex.DecodeString(item.SHA256)
		switch {
		case err != nil || len(raw) != 32 || item.SHA256 != strings.ToLower(item.SHA256):
			return get, fmt.Errorf("artifact %q: no SHA-256", clip(item.Title, 60))
		case item.Size <= 0 || item.Bytes < 0 || item.Entries < 0:
			return get, fmt.Errorf("artifact %q: no size", clip(item.Title, 60))
		case !localFolder(item.Dir), item.Replace && item.Dir == ".":
			return get, fmt.Errorf("artifact %q: %q is no folder of the workspace", clip(item.Title, 60), clip(item.Dir, 200))
		}
	}
	return get, nil
}

// localFolder reports whether a path with slashes leads to a folder of the workspace on every system.
func localFolder(dir string) bool {
	return len(dir) <= 4096 && path.Clean(dir) == dir && fs.ValidPath(dir) && filepath.IsLocal(filepath.FromSlash(dir)) && !strings.ContainsAny(dir, "\\:\x00")
}

func decodeArtifact(text string, into any) error {
	if len(text) > maxScript {
		return fmt.Errorf("longer than %d bytes", maxScript)
	}
	return json.NewDecoder(bytes.NewReader([]byte(text))).Decode(into)
}

// saveArtifact packs what a task names and stores it with the server. Packing it again makes the same archive of the
// same files, so that a repetition is one for the server as well.
func (r *run) saveArtifact(ctx context.Context) *failure {
	save, err := decodeSave(r.task.Params[wire.ParamArtifact])
	if err != nil {
		return userError(wire.CodeInvalidInput, "%v", err)
	}
	file, err := r.archive()
	if err != nil {
		return userError(wire.CodeCannotRun, "make room for the archive: %v", err)
	}
	defer r.remove()
	made, err := pack(ctx, r.j.workspace, save, file)
	if err = errors.Join(err, file.Close()); err != nil {
		return artifactFailure(ctx, "save artifact "+save.Name, err)
	}
	for _, p := range made.unmatched {
		r.log.Say(wire.LogWarn, "artifact %s: nothing in the workspace matches %s", save.Name, p)
	}
	if made.entries == 0 {
		r.log.Say(wire.LogNormal, "artifact %s is optional and there is nothing of it: not saved", save.Name)
		return nil
	}
	if _, _, err := unpack.Size(ctx, file.Name(), unpack.Limits{Bytes: max(1, made.bytes), Entries: made.entries, Ratio: maxRatio}); err != nil {
		return artifactFailure(ctx, "save artifact "+save.Name, err) // nobody could unpack it
	}
	r.log.Say(wire.LogNormal, "artifact %s: %d files, %d bytes, packed %d, SHA-256 %s", save.Name, made.files, made.bytes, made.size, made.digest)
	offer := wire.ArtifactOffer{TaskID: r.id, Name: save.Name, SHA256: made.digest, Size: made.size, Bytes: made.bytes, Entries: made.entries}
	err = patient.do(ctx, http.MethodPut, func(int) error { return r.store(ctx, offer, file.Name()) })
	if err != nil {
		return artifactFailure(ctx, "save artifact "+save.Name, err)
	}
	r.log.Say(wire.LogNormal, "artifact %s is saved", save.Name)
	return nil
}

// store is one attempt: tell the server, send what it does not have, and tell it again.
func (r *run) store(ctx context.Context, offer wire.ArtifactOffer, archive string) error {
	stored, err := r.j.session.OfferArtifact(ctx, offer)
	if err != nil || stored {
		return err
	}
	file, err := os.Open(archive) // anew: an attempt that failed may still be reading
	if err != nil {
		return err // of a file that we made: tried again as if it were the server's fault
	}
	defer func() { _ = file.Close() }()
	if err := r.j.session.SendArtifact(ctx, offer.SHA256, offer.Size, file); err != nil {
		return err
	}
	if stored, err = r.j.session.OfferArtifact(ctx, offer); err == nil && !stored {
		err = &wire.BodyError{Op: "store artifact", Err: errors.New("it was sent, and the server does not have it")}
	}
	return err
}

// getArtifacts puts the artifacts that a task names into the workspace: each is fetched, checked and unpacked as a
// whole, and then gets its place.
func (r *run) getArtifacts(ctx context.Context) *failure {
	get, err := decodeGet(r.task.Params[wire.ParamArtifact])
	if err != nil {
		return userError(wire.CodeInvalidInput, "get artifacts: %v", err)
	}
	root, err := os.OpenRoot(r.j.workspace)
	if err != nil {
		return userError(wire.CodeCannotRun, "get artifacts: %v", err)
	}
	defer func() { _ = root.Close() }()
	sweepUnpacked(root)
	for _, text := range get.Missing {
		r.log.Say(wire.LogWarn, "%s", text)
	}
	for _, item := range get.Items {
		if err := r.getArtifact(ctx, root, item); err != nil {
			return artifactFailure(ctx, "get artifact "+item.Title, err)
		}
		r.log.Say(wire.LogNormal, "artifact %s: %d bytes in %s", item.Title, item.Bytes, item.Dir)
	}
	return nil
}

func (r *run) getArtifact(ctx context.Context, root *os.Root, item wire.ArtifactItem) error {
	file, err := r.archive()
	if err != nil {
		return err
	}
	defer r.remove()
	var disk error // of our own: trying again does not help
	err = patient.do(ctx, http.MethodGet, func(int) error {
		_, serr := file.Seek(0, io.SeekStart)
		if disk = errors.Join(serr, file.Truncate(0)); disk != nil {
			return nil
		}
		err := r.j.session.FetchArtifact(ctx, item.SHA256, item.Size, file)
		if wire.LocalError(err) {
			disk, err = err, nil
		}
		return err
	})
	if err = errors.Join(err, disk, file.Close()); err != nil {
		return err
	}
	fresh := unpackPrefix + rand.Text()
	defer func() { _ = root.RemoveAll(fresh) }()
	limits := unpack.Limits{Bytes: max(1, item.Bytes), Entries: max(1, item.Entries), Ratio: maxRatio}
	if err := unpack.Into(ctx, file.Name(), filepath.Join(r.j.workspace, fresh), limits); err != nil {
		return err
	}
	return place(root, fresh, item.Dir, item.Replace)
}

// archive makes a temporary file that is removed with the task's others.
func (r *run) archive() (*os.File, error) {
	temp := r.j.args.TempDir
	if temp == "" {
		temp = os.TempDir()
	}
	if err := os.MkdirAll(temp, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(temp, "devops_artifact_*.tar.gz") // mode 0600
	if err == nil {
		r.files = append(r.files, f.Name())
	}
	return f, err
}

// artifactFailure says why a task failed: in the server's words where it said no, and without the name of a temporary
// file where an archive is refused.
func artifactFailure(ctx context.Context, what string, err error) *failure {
	var refused *unpack.EntryError
	var status *wire.StatusError
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errCancelled):
		return userError(wire.CodeFastKill, "the task was cancelled")
	case errors.Is(cause, errTaskLimit):
		return userError(wire.CodeTaskTimeout, "%s: the time limit of the task is over", what)
	case cause != nil:
		return userError(wire.CodeFastKill, "the task was ended: %v", cause)
	case errors.As(err, &refused) && refused.Err != nil:
		return userError(wire.CodeScriptFailed, "%s: %q %s: %v", what, clip(refused.Entry, 200), refused.Reason, refused.Err)
	case errors.As(err, &refused):
		return userError(wire.CodeScriptFailed, "%s: %q %s", what, clip(refused.Entry, 200), refused.Reason)
	case errors.As(err, &status) && status.Message != "":
		return userError(wire.CodeScriptFailed, "%s: %s", what, status.Message)
	}
	return userError(wire.CodeScriptFailed, "%s: %v", what, err)
}

// sweepUnpacked removes what a worker that was killed left in the workspace.
func sweepUnpacked(root *os.Root) {
	dir, err := root.Open(".")
	if err != nil {
		return
	}
	names, _ := dir.Readdirnames(-1)
	_ = dir.Close()
	for _, name := range names {
		if strings.HasPrefix(name, unpackPrefix) {
			_ = root.RemoveAll(name)
		}
	}
}

// place moves what was unpacked to where it belongs. With replace, what is there goes; otherwise it stays, but for files
// of the same names.
func place(root *os.Root, fresh, dir string, replace bool) error {
	if replace {
		if err := root.RemoveAll(filepath.FromSlash(dir)); err != nil {
			return err
		}
		if err := root.MkdirAll(filepath.FromSlash(path.Dir(dir)), 0o777); err != nil {
			return err
		}
		return root.Rename(fresh, filepath.FromSlash(dir))
	}
	return fs.WalkDir(root.FS(), fresh, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.FromSlash(path.Join(dir, strings.TrimPrefix(strings.TrimPrefix(name, fresh), "/")))
		if !d.IsDir() {
			if there, err := root.Lstat(to); err == nil && there.IsDir() {
				return fmt.Errorf("%s is a folder here, and a file in the artifact", to)
			}
			return root.Rename(filepath.FromSlash(name), to)
		}
		if err := root.MkdirAll(to, 0o777); err != nil {
			return fmt.Errorf("make the folder %s: %w", to, err)
		}
		return nil
	})
}
