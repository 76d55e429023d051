package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/devops-agent/devops-agent/packaging"
	"github.com/devops-agent/devops-agent/upgrader/trust"
)

// packagesAmong returns the packages and directories among files; the others are files with a signature beside them.
func packagesAmong(files []string) (ours, others []string) {
	for _, file := range files {
		info, err := os.Stat(file)
		_, bad := formatOf(file)
		if err == nil && info.IsDir() || bad == nil {
			ours = append(ours, file)
			continue
		}
		others = append(others, file)
	}
	return ours, others
}

// verifyPackages checks packages, and directories of packages with their sums. Where the programs are that they were made of, each
// is held against its manifest.
func verifyPackages(ctx context.Context, s *streams, b release, policy trust.Policy, files []string) (err error) {
	manifests, err := b.manifests(ctx, s)
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.IsDir() {
			errs = append(errs, verifyDirectory(s, manifests, policy, file))
			continue
		}
		errs = append(errs, verifyPackage(s, manifests, file))
	}
	return errors.Join(errs...)
}

// manifests are those of all packages that can be made here, by the name of the file; none when there are no programs.
func (b *release) manifests(ctx context.Context, s *streams) (_ map[string]packaging.Manifest, err error) {
	if _, err := os.Stat(filepath.Join(b.bin, hostProgram("devopsAgent"))); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	docs, err := os.MkdirTemp("", "packager-docs-")
	if err != nil {
		return nil, err
	}
	// what is in docs is read here; manual pages are in a manifest as data
	defer func() { err = errors.Join(err, os.RemoveAll(docs)) }()
	r, err := b.open(ctx, s, docs)
	if err != nil {
		return nil, err
	}
	known := map[string]packaging.Manifest{}
	for _, f := range packaging.Formats() {
		for _, arch := range f.Arches() {
			m, err := packaging.Contents(r, f, arch)
			if errors.Is(err, fs.ErrNotExist) {
				continue // programs of a system that were not built
			}
			if err != nil {
				return nil, err
			}
			known[f.FileName(m)] = m
		}
		m, ok, err := packaging.Java(r, f)
		if err != nil {
			return nil, err
		}
		if ok {
			known[f.FileName(m)] = m
		}
	}
	return known, nil
}

// verifyDirectory checks the sums of a directory, their signature when there are keys, and its packages.
func verifyDirectory(s *streams, manifests map[string]packaging.Manifest, policy trust.Policy, dir string) error {
	sums := filepath.Join(dir, packaging.SumsName)
	if len(policy.Keys) > 0 {
		sig, err := trust.ReadSignature(sums + signatureSuffix)
		if err != nil {
			return err
		}
		claim, err := policy.Check(sums, sig, trust.Target{Name: packaging.SumsName, OS: "any", Arch: "any"})
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(s.out, "%s: good, %v, key %s\n", sums, claim, claim.KeyID); err != nil {
			return err
		}
	}
	names, err := packaging.CheckSums(dir)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s.out, "%s: %d files are as it says\n", sums, len(names)); err != nil {
		return err
	}
	var errs []error
	for _, name := range slices.Sorted(slices.Values(names)) {
		if _, err := formatOf(name); err == nil {
			errs = append(errs, verifyPackage(s, manifests, filepath.Join(dir, name)))
		}
	}
	return errors.Join(errs...)
}

// contentError: a package is not what it should be.
type contentError struct {
	file  string
	found []string
}

// Error names the differences, a line each.
func (e *contentError) Error() string {
	return e.file + " is not what these programs make:\n  " + strings.Join(e.found, "\n  ")
}

// Hint says what else may be the reason.
func (e *contentError) Hint() string {
	return "--bin and --root must be the programs and the source tree that the package was made of"
}

// verifyPackage reads a package, which checks its own digests, and holds it against its manifest.
func verifyPackage(s *streams, manifests map[string]packaging.Manifest, file string) error {
	l, err := listing(file)
	if err != nil {
		return err
	}
	m, ok := manifests[filepath.Base(file)]
	if !ok {
		_, err = fmt.Fprintf(s.out, "%s: whole; %d entries; nothing here to hold it against\n", file, len(l.Entries))
		return err
	}
	found, err := packaging.Differences(m, l)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return &contentError{file, found}
	}
	signed := 0
	for _, e := range l.Entries {
		if e.Bare != "" {
			signed++
		}
	}
	more := ""
	if signed > 0 {
		more = fmt.Sprintf(", %d of them signed since (osslsigncode verify says by whom)", signed)
	}
	_, err = fmt.Fprintf(s.out, "%s: good; %d entries as in the manifest%s\n", file, len(l.Entries), more)
	return err
}
