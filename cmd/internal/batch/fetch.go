package batch

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service"
)

// What a batch's archive may hold: scripts, an identity, certificates (protocol §5.6).
const (
	maxArchive = 8 << 20
	maxEntries = 256
	maxUnpack  = 16 << 20
	batchLimit = 5 * time.Minute // for the download
	totalLimit = 5 * time.Minute // for other work on the installation
)

// batch makes a copy of a pristine image an agent of its own: it fetches the files of a fresh agent by the id that
// devops.agent.batch.install names, and unpacks them over the home (protocol §5.6). Nothing of the home changes before the
// whole archive was read and found good.
type batch struct {
	inst  *service.Installation
	log   *slog.Logger
	limit time.Duration // of the download
	verb  func(ctx context.Context, name string) error
}

// batchKey is what may become a part of an address.
var batchKey = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (b batch) run(ctx context.Context) error {
	key, err := b.key()
	if err != nil || key == "" {
		return err
	}
	if b.used() {
		b.log.Info("Batch left alone: an agent has run here, and has its own identity")
		return nil
	}
	if !batchKey.MatchString(key) {
		return fmt.Errorf("%s: %s is no agent's id", config.PropertiesFile, config.KeyBatchInstall)
	}
	files, err := b.fetch(ctx, key)
	if err != nil {
		return fmt.Errorf("install by batch %s: %w", key, err)
	}
	if err := b.verb(ctx, "uninstall"); err != nil {
		return fmt.Errorf("install by batch %s: take back what is registered: %w", key, err)
	}
	total, err := b.inst.HoldTotal(ctx, totalLimit)
	if err != nil {
		return fmt.Errorf("install by batch %s: %w", key, err)
	}
	if err := errors.Join(b.unpack(files), total.Release()); err != nil {
		return fmt.Errorf("install by batch %s: %w", key, err)
	}
	b.log.Info("Files of a fresh agent unpacked", "batch", key, "files", len(files))
	return nil
}

// key reads devops.agent.batch.install, "" when there is none. The configuration knows no such setting: agents have no use
// for it.
func (b batch) key() (string, error) {
	text, err := os.ReadFile(b.inst.Path(config.PropertiesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for a batch: %w", err)
	}
	key := ""
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, "="); strings.TrimSpace(name) == config.KeyBatchInstall {
			key = strings.TrimSpace(value) // the last one counts
		}
	}
	return key, nil
}

// used reports whether an agent has run in this home. The original's batch works on a pristine image alone, because its agent
// drops the key at its first start; ours keeps what it does not know.
func (b batch) used() bool {
	_, err := os.Stat(b.inst.Path("runtime", "agent.pid"))
	return err == nil
}

// file is an entry of the archive: a name below home, with slashes.
type file struct {
	name string
	mode fs.FileMode
	data []byte
}

// fetch downloads and reads the archive.
func (b batch) fetch(ctx context.Context, key string) ([]file, error) {
	cfg, err := config.LoadConfig(b.inst.Config)
	if err != nil {
		return nil, err
	}
	settings, err := config.Peek(b.inst.Home, cfg)
	if err != nil {
		return nil, err
	}
	if err := wire.CheckGateway(settings.Gateway); err != nil {
		return nil, err
	}
	roots, err := config.Roots(b.inst.Home)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.limit, fmt.Errorf("not here within %s", b.limit))
	defer cancel()
	address := wire.BaseURL(settings.Gateway) + wire.PathExternal + "/" + key + "/batch_zip"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	id := settings.Identity
	for name, value := range map[string]string{
		wire.HeaderBuildType: wire.BuildTypeAgent, wire.HeaderProject: id.Project, wire.HeaderAgent: id.Agent, wire.HeaderSecret: string(id.Secret),
	} {
		req.Header.Set(name, value)
	}
	client := wire.NewHTTPClient(wire.HTTPOptions{Roots: roots, Proxy: config.Proxy(cfg, settings, nil)})
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch its files: %w", plain(ctx, err))
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch its files: server answered HTTP %d", resp.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxArchive+1))
	if err != nil {
		return nil, fmt.Errorf("fetch its files: %w", plain(ctx, err))
	}
	if len(data) > maxArchive {
		return nil, fmt.Errorf("fetch its files: more than %d bytes", maxArchive)
	}
	files, err := readArchive(data)
	if err == nil {
		err = b.verify(files)
	}
	if err != nil {
		return nil, fmt.Errorf("read its files: %w", err)
	}
	return files, nil
}

// plain prefers our own reason for giving up, and drops the address that net/http repeats.
func plain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// readArchive reads a whole archive into memory and refuses what does not belong into one: names that lead out of the home or
// mean something else on another system, links and devices, the operator's file, more than there can be.
func readArchive(data []byte) ([]file, error) {
	archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	if len(archive.File) > maxEntries {
		return nil, fmt.Errorf("%d entries, more than %d", len(archive.File), maxEntries)
	}
	var files []file
	left := int64(maxUnpack)
	seen := map[string]bool{}
	for _, entry := range archive.File {
		mode := entry.Mode()
		if mode.IsDir() {
			continue // made as they are needed
		}
		name := entry.Name
		switch {
		case !filepath.IsLocal(filepath.FromSlash(name)) || !fs.ValidPath(name) || strings.ContainsAny(name, "\\:\x00"):
			return nil, fmt.Errorf("entry %q leads elsewhere", name)
		case !mode.IsRegular():
			return nil, fmt.Errorf("entry %q is no file", name)
		case strings.EqualFold(name, "agent.toml"):
			return nil, fmt.Errorf("entry %q is the operator's alone", name)
		case seen[strings.ToLower(name)]:
			return nil, fmt.Errorf("entry %q is there twice", name)
		}
		seen[strings.ToLower(name)] = true
		content, err := readEntry(entry, left)
		if err != nil {
			return nil, fmt.Errorf("entry %q: %w", name, err)
		}
		left -= int64(len(content))
		f := file{name: name, mode: 0o644, data: content}
		switch {
		case name == config.PropertiesFile:
			f.mode, f.data = 0o600, withoutKey(content)
		case mode.Perm()&0o111 != 0 || path.Ext(name) == ".sh":
			f.mode = 0o755
		}
		files = append(files, f)
	}
	return files, nil
}

func readEntry(entry *zip.File, left int64) ([]byte, error) {
	r, err := entry.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	data, err := io.ReadAll(io.LimitReader(r, left+1))
	if err == nil && int64(len(data)) > left {
		err = fmt.Errorf("more than %d bytes with what came before", int64(maxUnpack))
	}
	return data, err
}

// withoutKey drops the key of the batch: the next installer must not make another agent.
func withoutKey(properties []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(properties) {
		if name, _, _ := bytes.Cut(line, []byte("=")); string(bytes.TrimSpace(name)) != config.KeyBatchInstall {
			kept = append(kept, line...)
		}
	}
	return kept
}

// verify reads the new identity as an agent would.
func (b batch) verify(files []file) (err error) {
	at := slices.IndexFunc(files, func(f file) bool { return f.name == config.PropertiesFile })
	if at < 0 {
		return fmt.Errorf("no %s in it", config.PropertiesFile)
	}
	dir, err := os.MkdirTemp(b.inst.Home, ".agent-package-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.WriteFile(filepath.Join(dir, config.PropertiesFile), files[at].data, 0o600); err != nil {
		return err
	}
	_, err = config.Peek(dir, &config.Config{})
	return err
}

// unpack puts every file into place, each whole or not at all, the identity last: until then the home is the image that it was.
func (b batch) unpack(files []file) (err error) {
	root, err := os.OpenRoot(b.inst.Home)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	var identity []file
	for _, f := range files {
		if f.name == config.PropertiesFile {
			identity = append(identity, f)
			continue
		}
		if err := place(root, f); err != nil {
			return err
		}
	}
	if err := root.Remove(config.BackupFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // the image's identity must never come back
	}
	for _, f := range identity {
		if err := place(root, f); err != nil {
			return err
		}
	}
	return nil
}

func place(root *os.Root, f file) (err error) {
	name := filepath.FromSlash(f.name)
	if dir := filepath.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	fresh := filepath.Join(filepath.Dir(name), ".agent-package-"+rand.Text())
	out, err := root.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = root.Remove(fresh)
		}
	}()
	_, err = out.Write(f.data)
	if err == nil {
		err = out.Chmod(f.mode)
	}
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return root.Rename(fresh, name)
}
