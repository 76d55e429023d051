package packaging

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/devops-agent/devops-agent/service"
)

//go:embed files
var texts embed.FS

// text is one of our texts.
func text(name string) (string, error) {
	data, err := texts.ReadFile("files/" + name)
	return string(data), err
}

// into reads texts of ours into variables.
func into(names map[string]*string) error {
	for name, to := range names {
		s, err := text(name)
		if err != nil {
			return err
		}
		*to = s
	}
	return nil
}

// squeeze compresses a text the same way every time: no name, no time.
func squeeze(data []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(data); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// tree collects the files of a manifest whose owner is root.
type tree struct {
	m    *Manifest
	root string // group of root
}

func (t tree) add(f File) {
	if f.Owner == "" {
		f.Owner = "root"
	}
	if f.Group == "" {
		f.Group = t.root
	}
	t.m.Files = append(t.m.Files, f)
}

func (t tree) dir(paths ...string) {
	for _, p := range paths {
		t.add(File{Path: p, Kind: Dir, Mode: 0o755})
	}
}

func (t tree) data(path string, data []byte) { t.add(File{Path: path, Mode: 0o644, Data: data}) }

// manuals adds the manual pages, compressed.
func (t tree) manuals(r Release, dir string) error {
	if r.Docs == "" {
		return &DocsError{}
	}
	entries, err := os.ReadDir(filepath.Join(r.Docs, "man"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		page, err := readText(filepath.Join(r.Docs, "man", e.Name()))
		if err != nil {
			return err
		}
		data, err := squeeze([]byte(page))
		if err != nil {
			return err
		}
		t.data(path.Join(dir, "man"+strings.TrimPrefix(path.Ext(e.Name()), "."), e.Name()+".gz"), data)
	}
	return nil
}

// completion adds the completion of a shell.
func (t tree) completion(r Release, shell, to string) error {
	if r.Docs == "" {
		return &DocsError{}
	}
	data, err := readText(filepath.Join(r.Docs, "completion", shell))
	if err != nil {
		return err
	}
	t.data(to, []byte(data))
	return nil
}

// DocsError: there are no manual pages to put into a package.
type DocsError struct{}

// Error says so.
func (*DocsError) Error() string { return "there are no manual pages and completions" }

// Hint says who makes them.
func (*DocsError) Hint() string { return "\"packager build\" lets the agent's own program write them" }

// linuxContents are the files of a Linux package that are the same in all formats.
func linuxContents(r Release, m *Manifest) error {
	l, t := m.Layout, tree{m, "root"}
	conf := path.Dir(l.Config)
	t.dir(l.Vendor, service.DropIns, conf)
	t.add(File{Path: conf + "/enroll.d", Kind: Dir, Mode: 0o750, Group: l.Account})
	for _, program := range []string{"devopsAgent", "devopsWorker", "upgrader"} {
		t.add(File{Path: l.Vendor + "/" + program, Mode: 0o755, Source: r.program(program, "linux", m.GOARCH), Program: true})
	}
	t.add(File{Path: "/usr/bin/devopsAgent", Kind: Link, Mode: 0o777, Target: ".." + strings.TrimPrefix(l.Vendor, "/usr") + "/devopsAgent"})
	t.add(File{Path: l.Config, Kind: Config, Mode: 0o644, Source: filepath.Join(r.Root, "agent", "config", "testdata", "agent.toml")})
	units, err := service.SystemdFiles()
	if err != nil {
		return err
	}
	for _, u := range units {
		t.add(File{Path: u.Path, Mode: u.Mode, Data: []byte(u.Text)})
	}
	for _, name := range []string{"devops-agent-replace.service", "devops-agent-replace@.service"} {
		s, err := text(name)
		if err != nil {
			return err
		}
		t.data("/usr/lib/systemd/system/"+name, []byte(s))
	}
	if err := t.manuals(r, "/usr/share/man"); err != nil {
		return err
	}
	for shell, to := range map[string]string{
		"bash": "/usr/share/bash-completion/completions/devopsAgent",
		"fish": "/usr/share/fish/vendor_completions.d/devopsAgent.fish",
	} {
		if err := t.completion(r, shell, to); err != nil {
			return err
		}
	}
	if m.Changes, err = changes(r); err != nil {
		return err
	}
	return nil
}

// ownLicence is the text of ours.
func ownLicence(r Release) (string, error) {
	own, err := readText(filepath.Join(r.Root, "LICENSE"))
	if err != nil {
		return "", fmt.Errorf("our licence: %w", err)
	}
	return own, nil
}
