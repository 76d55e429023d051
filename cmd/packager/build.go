package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/packaging"
)

// release is what the command line says about the version that packages are made of.
type release struct {
	version, commit, stamp string
	bin, root              string
}

func (b *release) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&b.version, "version", "", "version of the packages, as v1.2.3 (default: as of the source tree)")
	cmd.Flags().StringVar(&b.commit, "commit", "", "commit of the programs (default: that of the source tree)")
	cmd.Flags().StringVar(&b.stamp, "time", "", "time of everything in the packages, RFC 3339 or seconds since 1970 (default: SOURCE_DATE_EPOCH, or that of the commit)")
	cmd.Flags().StringVar(&b.bin, "bin", "bin", "`directory` of the programs, as \"make build_all\" makes them")
	cmd.Flags().StringVar(&b.root, "root", ".", "`directory` of the source tree")
}

// open makes a Release. What the command line leaves open, the source tree says. docs is a directory for manual pages.
func (b *release) open(ctx context.Context, s *streams, docs string) (packaging.Release, error) {
	r := packaging.Release{Version: b.version, Commit: b.commit, Root: b.root, Docs: docs}
	var err error
	if r.Bin, err = filepath.Abs(b.bin); err != nil {
		return r, err
	}
	if r.Version == "" {
		if r.Version, err = output(ctx, b.root, "sh", filepath.Join("scripts", "version.sh")); err != nil {
			return r, fmt.Errorf("find the version: %w", err)
		}
	}
	if r.Commit == "" {
		if r.Commit, err = output(ctx, b.root, "git", "rev-parse", "HEAD"); err != nil {
			r.Commit = "unknown"
		}
	}
	stamp := b.stamp
	if stamp == "" {
		stamp = s.env("SOURCE_DATE_EPOCH")
	}
	if stamp == "" {
		if stamp, err = output(ctx, b.root, "git", "show", "-s", "--format=%ct", "HEAD"); err != nil {
			return r, fmt.Errorf("find the time of the commit: %w", err)
		}
	}
	if r.Time, err = moment(stamp); err != nil {
		return r, err
	}
	own := filepath.Join(r.Bin, hostProgram("devopsAgent"))
	if err := writeDocs(ctx, own, docs); err != nil {
		return r, err
	}
	r.Licences, err = licences(ctx, r)
	return r, err
}

// moment reads a time in either form.
func moment(text string) (time.Time, error) {
	var seconds int64
	if n, err := fmt.Sscanf(text, "%d", &seconds); err == nil && n == 1 && fmt.Sprint(seconds) == text {
		return time.Unix(seconds, 0).UTC(), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("time of the packages: %w", err)
	}
	return at.UTC().Truncate(time.Second), nil
}

// hostProgram is the name of a program of ours that runs on this machine.
func hostProgram(name string) string {
	suffix := "_" + runtime.GOOS
	switch runtime.GOOS {
	case "windows":
		return name + ".exe"
	case "darwin":
		suffix = "_macos"
	}
	if runtime.GOARCH != "amd64" {
		suffix += "_" + runtime.GOARCH
	}
	return name + suffix
}

// output runs a program and returns its output, without blanks around.
func output(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// programsError: the agent's program that writes its own documentation is not there.
type programsError struct{ err error }

// Error names it.
func (e *programsError) Error() string { return "write manual pages: " + e.err.Error() }

// Unwrap returns the cause.
func (e *programsError) Unwrap() error { return e.err }

// Hint says how to make it.
func (e *programsError) Hint() string {
	return "\"make build_all\" makes the programs; --bin says where they are"
}

// writeDocs lets the agent write its manual pages and completions.
func writeDocs(ctx context.Context, program, dir string) error {
	if _, err := os.Stat(program); err != nil {
		return &programsError{err}
	}
	if _, err := output(ctx, dir, program, "man", "--dir", filepath.Join(dir, "man")); err != nil {
		return &programsError{err}
	}
	if err := os.MkdirAll(filepath.Join(dir, "completion"), 0o700); err != nil {
		return err
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		text, err := output(ctx, dir, program, "completion", shell)
		if err != nil {
			return &programsError{err}
		}
		if err := os.WriteFile(filepath.Join(dir, "completion", shell), []byte(text+"\n"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// licences finds the licences of what is linked into the programs for Linux, macOS and Windows.
func licences(ctx context.Context, r packaging.Release) ([]packaging.Licence, error) {
	out, err := output(ctx, r.Root, "go", "env", "GOMODCACHE", "GOROOT")
	if err != nil {
		return nil, fmt.Errorf("find the module cache: %w", err)
	}
	cache, goroot, ok := strings.Cut(out, "\n")
	if !ok {
		return nil, fmt.Errorf("find the module cache: go env says %q", out)
	}
	var programs []string
	for _, name := range []string{"devopsAgent", "devopsDaemon", "devopsWorker", "upgrader"} {
		found, err := filepath.Glob(filepath.Join(r.Bin, name+"[._]*"))
		if err != nil {
			return nil, err
		}
		programs = append(programs, found...)
	}
	return packaging.Licences(programs, strings.TrimSpace(cache), strings.TrimSpace(goroot))
}

// wanted are the packages that a command line asks for.
type wanted struct {
	only, arches []string
}

func (w *wanted) flags(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&w.only, "only", nil, "these formats: "+formatNames()+" (default: all)")
	cmd.Flags().StringSliceVar(&w.arches, "arch", nil, "these architectures, as amd64 (default: all that a format is made for)")
}

func formatNames() string {
	var names []string
	for _, f := range packaging.Formats() {
		names = append(names, string(f))
	}
	return strings.Join(names, ", ")
}

// one is a package to be made.
type one struct {
	format   packaging.Format
	manifest packaging.Manifest
}

func (o one) name() string { return o.format.FileName(o.manifest) }

// packages are the manifests of what is asked for.
func (w *wanted) packages(r packaging.Release) ([]one, error) {
	var all []one
	for _, name := range w.only {
		if !slices.Contains(packaging.Formats(), packaging.Format(name)) {
			return nil, fmt.Errorf("there is no format %q, but %s", name, formatNames())
		}
	}
	for _, f := range packaging.Formats() {
		if len(w.only) > 0 && !slices.Contains(w.only, string(f)) {
			continue
		}
		made := 0
		for _, arch := range f.Arches() {
			if len(w.arches) > 0 && !slices.Contains(w.arches, arch) {
				continue
			}
			m, err := packaging.Contents(r, f, arch)
			if err != nil {
				return nil, err
			}
			all = append(all, one{f, m})
			made++
		}
		m, ok, err := packaging.Java(r, f)
		if err != nil {
			return nil, err
		}
		if ok && made > 0 {
			all = append(all, one{f, m})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no format is made for %s", strings.Join(w.arches, ", "))
	}
	return all, nil
}

func buildCommand(s *streams) *cobra.Command {
	var b release
	var w wanted
	var out string
	var options packaging.Options
	var rpmWord, windowsWord string
	var key sumsKey
	cmd := &cobra.Command{
		Use: "build", Short: "Make the packages of all systems", Args: usage(cobra.NoArgs),
		Long: "build makes packages of the programs in --bin. The same programs and the same commit give the same bytes, wherever and\n" +
			"whenever that is. Packages that are there already are replaced.",
		Example: "  packager build --bin bin --out dist --only deb,rpm",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, one := range []struct {
				file string
				to   *string
			}{{rpmWord, &options.RPMKeyWord}, {windowsWord, &options.PFXWord}} {
				if one.file == "" {
					continue
				}
				word, err := readKeyFile(one.file)
				if err != nil {
					return err
				}
				*one.to = strings.TrimRight(string(word), "\r\n")
			}
			return build(cmd.Context(), s, b, w, options, out, &key)
		},
	}
	cmd.Flags().StringVar(&out, "out", "dist", "`directory` for the packages")
	cmd.Flags().StringVar(&options.RPMKey, "rpm-key", "", "`file` of an OpenPGP secret key that signs rpm packages")
	cmd.Flags().StringVar(&rpmWord, "rpm-key-password-file", "", "`file` with its password")
	cmd.Flags().StringVar(&options.PFX, "windows-key", "", "PKCS#12 `file` of the key that signs programs and packages for Windows, by osslsigncode")
	cmd.Flags().StringVar(&windowsWord, "windows-key-password-file", "", "`file` with its password")
	cmd.Flags().StringVar(&options.TimestampURL, "windows-timestamp", "", "`address` of the RFC 3161 server that says when they were signed")
	key.flags(cmd)
	b.flags(cmd)
	w.flags(cmd)
	return cmd
}

// build makes packages, and what goes with them, and says which.
func build(ctx context.Context, s *streams, b release, w wanted, options packaging.Options, out string, key *sumsKey) (err error) {
	secret, sign, err := key.open(s)
	if err != nil {
		return err
	}
	docs, err := os.MkdirTemp("", "packager-docs-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(docs)) }()
	r, err := b.open(ctx, s, docs)
	if err != nil {
		return err
	}
	all, err := w.packages(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil { //nolint:gosec // packages are for everybody
		return err
	}
	for _, p := range all {
		path := filepath.Join(out, p.name())
		if err := replaceFile(path, func(to io.Writer) error { return packaging.Write(ctx, p.format, p.manifest, options, to) }); err != nil {
			return err
		}
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(s.out, "%s (%.1f MiB)\n", path, float64(info.Size())/(1<<20)); err != nil {
			return err
		}
	}
	return finish(s, r, all, out, secret, sign)
}

// replaceFile writes beside a file and renames: nobody sees half of it.
func replaceFile(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}
