package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/packaging"
	"github.com/devops-agent/devops-agent/upgrader/swap"
	"github.com/devops-agent/devops-agent/upgrader/trust"
)

// sumsKey is the minisign key that signs the list of a release, if any.
type sumsKey struct {
	file string
	word password
}

func (k *sumsKey) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.file, "sign-key", "", "`file` of a secret key of keygen that signs "+packaging.SumsName)
	k.word.flags(cmd)
}

// open reads the key, before anything is built; it has none when there is no --sign-key.
func (k *sumsKey) open(s *streams) (trust.Secret, bool, error) {
	if k.file == "" {
		return trust.Secret{}, false, nil
	}
	secret, err := readSecret(s, k.file, &k.word)
	return secret, err == nil, err
}

// finish writes beside packages what goes with them: the bill of materials, the list of sums, and its signature.
func finish(s *streams, r packaging.Release, made []one, out string, secret trust.Secret, sign bool) error {
	name, err := packaging.SBOMName(r)
	if err != nil {
		return err
	}
	manifests, err := described(r, made)
	if err != nil {
		return err
	}
	bill := filepath.Join(out, name)
	if err := replaceFile(bill, func(to io.Writer) error { return packaging.WriteSBOM(to, r, manifests...) }); err != nil {
		return err
	}
	sums := filepath.Join(out, packaging.SumsName)
	if err := os.Remove(sums + signatureSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) { // it is of another list
		return err
	}
	if err := replaceFile(sums, func(to io.Writer) error { return packaging.WriteSums(to, out) }); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s.out, "%s\n%s\n", bill, sums); err != nil {
		return err
	}
	if !sign {
		return nil
	}
	sig, err := trust.Sign(sums, secret, trust.Claim{Name: packaging.SumsName, OS: "any", Arch: "any", Version: r.Version, Time: time.Now()})
	if err != nil {
		return err
	}
	if err := swap.WriteFile(sums+signatureSuffix, sig, 0o644); err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.out, sums+signatureSuffix)
	return err
}

// described are the manifests of what was made, and of the other packages whose programs are all there: the bill of
// materials is the same however the packages were made, in one run or in several.
func described(r packaging.Release, made []one) ([]packaging.Manifest, error) {
	var list []packaging.Manifest
	for _, p := range made {
		list = append(list, p.manifest)
	}
	for _, f := range packaging.Formats() {
		for _, arch := range f.Arches() {
			m, err := packaging.Contents(r, f, arch)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if built(m) {
				list = append(list, m)
			}
		}
	}
	return list, nil
}

func built(m packaging.Manifest) bool {
	for _, f := range m.Files {
		if !f.Program || f.Source == "" {
			continue
		}
		if _, err := os.Stat(f.Source); err != nil {
			return false
		}
	}
	return true
}
