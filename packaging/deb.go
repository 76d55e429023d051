package packaging

import (
	"context"
	"io"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
)

// debContents adds what a Debian package has to the manifest of Linux.
func debContents(r Release, m *Manifest) error {
	if err := linuxContents(r, m); err != nil {
		return err
	}
	t := tree{m, "root"}
	if err := t.completion(r, "zsh", "/usr/share/zsh/vendor-completions/_devopsAgent"); err != nil {
		return err
	}
	own, err := ownLicence(r)
	if err != nil {
		return err
	}
	log, err := squeeze([]byte(debChangelog(*m)))
	if err != nil {
		return err
	}
	t.dir("/usr/share/doc/" + m.Name)
	t.data("/usr/share/doc/"+m.Name+"/changelog.gz", log)
	t.data("/usr/share/doc/"+m.Name+"/copyright", []byte(debCopyright(*m, own, r.Licences)))
	var overrides, restarts string
	if err := into(map[string]*string{
		"lintian-overrides": &overrides, "needrestart.conf": &restarts, "deb/preinst": &m.Scripts.PreInstall,
		"deb/postinst": &m.Scripts.PostInstall, "deb/prerm": &m.Scripts.PreRemove, "deb/postrm": &m.Scripts.PostRemove,
	}); err != nil {
		return err
	}
	t.data("/usr/share/lintian/overrides/"+m.Name, []byte(overrides))
	t.add(File{Path: "/etc/needrestart/conf.d/" + m.Name + ".conf", Kind: Config, Mode: 0o644, Data: []byte(restarts)})
	m.Relations = Relations{Depends: []string{"passwd"}, Recommends: []string{"ca-certificates"}, Suggests: []string{javaName, "bash-completion"}}
	return nil
}

// debVersion is a version as dpkg compares it: 1.2.4~dev.3 comes before 1.2.4.
func debVersion(text string) string {
	v, err := parseVersion(text)
	if err != nil {
		return text
	}
	return v.tilde()
}

func debName(m Manifest) string {
	return m.Name + "_" + debVersion(m.Version) + "_" + m.GOARCH + ".deb"
}

func debKind(f File) string {
	switch f.Kind {
	case Dir:
		return files.TypeDir
	case Link:
		return files.TypeSymlink
	case Config:
		return files.TypeConfigNoReplace
	case Regular:
	}
	return files.TypeFile
}

func writeDeb(ctx context.Context, m Manifest, _ Options, w io.Writer) error {
	return writeNFPM(ctx, m, deb.Default, debKind, func(_ *staged, in *nfpm.Info) error {
		in.Section = "devel"
		in.Priority = "optional"
		in.License = "" // no field of a Debian package: it is in the copyright file
		in.Description = m.Summary + "\n" + strings.TrimSpace(m.Description)
		in.Deb.Compression = "gzip" // which every dpkg reads, quickly written; xz would save 2 MiB
		return nil
	}, w)
}
