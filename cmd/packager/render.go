package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/packaging"
)

func renderCommand(s *streams) *cobra.Command {
	var base, version, winget, cask, released string
	cmd := &cobra.Command{
		Use: "render --version VERSION --url URL [--winget DIR] [--cask DIR] FILE.msi|FILE.pkg...", Short: "Write manifests for winget and Homebrew",
		Long: "render writes what package managers of Windows and macOS need to find published packages: winget's three manifests for .msi files,\n" +
			"a Homebrew cask for a .pkg. The digests are those of the files given, which must be the ones that are published below the address.",
		Example: "  packager render --version v1.2.3 --url https://packages.example.org/v1.2.3 --winget winget --cask Casks dist/*.msi dist/*.pkg",
		Args:    usage(cobra.MinimumNArgs(1)),
		PreRunE: need("version", "url"),
		RunE: func(cmd *cobra.Command, files []string) error {
			if winget == "" && cask == "" {
				return &usageError{cmd: cmd, err: errors.New("nothing to write: give --winget or --cask")}
			}
			day := time.Now()
			if released != "" {
				var err error
				if day, err = time.Parse(time.DateOnly, released); err != nil {
					return &usageError{cmd: cmd, err: fmt.Errorf("--released: %w", err)}
				}
			}
			var msi, pkg []packaging.Published
			for _, file := range files {
				p, err := published(base, file)
				if err != nil {
					return err
				}
				switch ext := filepath.Ext(file); {
				case ext == ".msi":
					p.GOARCH = "amd64"
					if strings.HasSuffix(file, "-arm64.msi") {
						p.GOARCH = "arm64"
					}
					msi = append(msi, p)
				case ext == ".pkg":
					pkg = append(pkg, p)
				default:
					return fmt.Errorf("render %s: neither a .msi nor a .pkg", file)
				}
			}
			texts := map[string]string{} // by path
			if winget != "" {
				manifests, err := packaging.Winget(version, day, msi)
				if err != nil {
					return fmt.Errorf("render for winget: %w", err)
				}
				for name, text := range manifests {
					texts[filepath.Join(winget, name)] = text
				}
			}
			if cask != "" {
				if len(pkg) != 1 {
					return fmt.Errorf("render a cask: it takes one .pkg, not %d", len(pkg))
				}
				text, err := packaging.Cask(version, pkg[0])
				if err != nil {
					return fmt.Errorf("render a cask: %w", err)
				}
				texts[filepath.Join(cask, "devops-agent.rb")] = text
			}
			paths := make([]string, 0, len(texts))
			for path := range texts {
				paths = append(paths, path)
			}
			slices.Sort(paths)
			for _, path := range paths {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // it is published
					return err
				}
				if err := os.WriteFile(path, []byte(texts[path]), 0o644); err != nil { //nolint:gosec // it is published
					return err
				}
				if _, err := fmt.Fprintln(s.out, path); err != nil {
					return err
				}
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&version, "version", "", "`version` of the release, as in v1.2.3")
	fl.StringVar(&base, "url", "", "`address` of the directory that the files are published in")
	fl.StringVar(&winget, "winget", "", "`directory` for the manifests of winget")
	fl.StringVar(&cask, "cask", "", "`directory` for the cask")
	fl.StringVar(&released, "released", "", "`day` of the release, as in 2026-01-31 (default: today)")
	return cmd
}

// published is a file as it is below an address.
func published(base, file string) (p packaging.Published, err error) {
	if p.URL, err = url.JoinPath(base, filepath.Base(file)); err != nil {
		return p, err
	}
	f, err := os.Open(file)
	if err != nil {
		return p, err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	p.SHA256 = hex.EncodeToString(h.Sum(nil))
	return p, errors.Join(err, f.Close())
}
