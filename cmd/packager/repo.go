package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/packaging/repo"
)

func repoCommand(s *streams) *cobra.Command {
	r := repo.Repository{}
	var keys []string
	var p password
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "repo --out DIR --key KEY [FILE.deb|FILE.rpm...]", Short: "Make or update a signed apt and yum repository",
		Long: "repo adds packages to a repository of static files, which is made when there is none; any web server can serve it, and\n" +
			"so can devopsController serve --repo. Clients see the state before or the one after. A package that the repository\n" +
			"has is left alone; one of the same name, version and architecture with other content is refused. A run that was\n" +
			"interrupted is cleared up by the next. Without files, repo clears up and signs again what will not be valid for long.\n\n" +
			"To go from one key to the next, give both with --key for as long as clients need, then the new one alone.\n\n" + passwordHelp,
		Example: "  packager repo key --out repo.key --owner 'Example packages <it@example.org>'\n" +
			"  packager repo --out /srv/repo --key repo.key --url https://example.org/repo --keep 5 dist/*.deb dist/*.rpm",
		PreRunE: need("out", "key"),
		RunE: func(cmd *cobra.Command, files []string) error {
			for _, path := range keys {
				key, err := readRepoKey(s, path, &p)
				if err != nil {
					return err
				}
				r.Keys = append(r.Keys, key)
			}
			ctx, stop := context.WithTimeoutCause(cmd.Context(), wait, errBusy)
			defer stop()
			changes, err := r.Publish(ctx, files...)
			if err != nil {
				if errors.Is(context.Cause(ctx), errBusy) {
					err = errors.Join(err, errBusy)
				}
				return err
			}
			return printChanges(s, r.Dir, changes)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&r.Dir, "out", "", "`directory` of the repository")
	fl.StringArrayVar(&keys, "key", nil, "`file` of the secret OpenPGP key; may be given again")
	fl.IntVar(&r.Keep, "keep", 0, "keep this `number` of versions of each package and architecture, the newest (default: all)")
	fl.StringVar(&r.URL, "url", "", "`address` of the directory for clients; writes NAME.sources and NAME.repo for them")
	fl.DurationVar(&r.ValidFor, "valid-for", 0, "apt refuses the index after this `time`, as 720h; publish more often then (default: never)")
	fl.StringVar(&r.Suite, "suite", "stable", "suite of the apt repository")
	fl.StringVar(&r.Name, "name", "devops-agent", "name of the repository, and of the files that set a machine up")
	fl.StringVar(&r.Origin, "origin", "", "origin for apt, to pin by (default: the name)")
	fl.StringVar(&r.Label, "label", "", "what people see (default: the name)")
	fl.DurationVar(&wait, "timeout", 10*time.Minute, "give up after this `time`, waiting for another run included")
	p.flags(cmd)
	cmd.AddCommand(repoKeyCommand(s))
	return cmd
}

// errBusy: the time is up.
var errBusy error = &busyError{}

type busyError struct{}

// Error says that the time is up.
func (*busyError) Error() string { return "it took too long" }

// Hint says why it may have.
func (*busyError) Hint() string {
	return "perhaps another packager works there; --timeout gives it more time"
}

func printChanges(s *streams, dir string, c repo.Changes) error {
	for _, one := range []struct {
		sign string
		list []repo.Package
	}{{"+", c.Added}, {"-", c.Dropped}} {
		for _, p := range one.list {
			if _, err := fmt.Fprintf(s.out, "%s %s\n", one.sign, p); err != nil {
				return err
			}
		}
	}
	text := "nothing new"
	switch {
	case c.Apt && c.Yum:
		text = "apt and yum indexes are new"
	case c.Apt:
		text = "the apt index is new"
	case c.Yum:
		text = "the yum index is new"
	}
	_, err := fmt.Fprintf(s.out, "%s: %s\n", dir, text)
	return err
}

func readRepoKey(s *streams, path string, p *password) (*repo.Key, error) {
	text, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	key, err := repo.ParseKey(text, "")
	if errors.Is(err, repo.ErrLocked) {
		word, wordErr := p.read(s, false)
		if wordErr != nil {
			return nil, wordErr
		}
		key, err = repo.ParseKey(text, word)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func repoKeyCommand(s *streams) *cobra.Command {
	var out, kind, owner string
	var p password
	var open bool
	cmd := &cobra.Command{
		Use: "key --out KEY", Short: "Make an OpenPGP key to sign repositories with", Args: usage(cobra.NoArgs),
		Long: "key writes a secret OpenPGP key to the file KEY, readable by you alone, and its public half to KEY.pub. gpg can import\n" +
			"both; a key that gpg has exported with --export-secret-keys does as well. Neither file may exist yet. The rpm of EL 7\n" +
			"and 8 understands no ed25519.\n\n" + passwordHelp,
		Example: "  packager repo key --out repo.key --owner 'Example packages <it@example.org>' --password-file repo.password",
		PreRunE: need("out"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if open && p.given(s) {
				return &usageError{cmd: cmd, err: errors.New("a password was given, and --no-password as well")}
			}
			for _, path := range []string{out, out + ".pub"} {
				if _, err := os.Lstat(path); err == nil {
					return &existsError{path}
				} else if !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("make a key: %w", err)
				}
			}
			word := ""
			if !open {
				var err error
				if word, err = p.read(s, true); err != nil {
					return err
				}
			}
			key, err := repo.GenerateKey(repo.KeyKind(kind), owner, time.Now())
			if err != nil {
				return err
			}
			if err := writeRepoKey(out, word, key); err != nil {
				return err
			}
			_, err = fmt.Fprintf(s.out, "secret key in %s: keep it, and its password, where nobody else reads them\npublic key %s of %s in %s.pub\n",
				out, key.Fingerprint(), key.Owner(), out)
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&out, "out", "", "`file` for the secret key")
	fl.StringVar(&kind, "kind", string(repo.RSA), "rsa or ed25519")
	fl.StringVar(&owner, "owner", "devops-agent packages", "whose key it is, as 'NAME <MAIL>'")
	fl.BoolVar(&open, "no-password", false, "leave the secret key unprotected")
	p.flags(cmd)
	return cmd
}

// writeRepoKey writes the halves of a key to path and path.pub. When it fails, neither is there.
func writeRepoKey(path, password string, key *repo.Key) error {
	secret, err := key.MarshalSecret(password)
	if err != nil {
		return err
	}
	public, err := repo.ArmouredPublic(key)
	if err != nil {
		return err
	}
	if err := create(path, secret, 0o600); err != nil {
		return fmt.Errorf("write secret key: %w", err)
	}
	if err := create(path+".pub", public, 0o644); err != nil {
		return errors.Join(fmt.Errorf("write public key: %w", err), os.Remove(path))
	}
	return nil
}
