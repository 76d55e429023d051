package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/upgrader/swap"
	"github.com/devops-agent/devops-agent/upgrader/trust"
)

// maxKeyFile bounds the file of a key in bytes.
const maxKeyFile = 64 << 10

// signatureSuffix is what the name of a signature has more than that of its file.
const signatureSuffix = ".minisig"

// as is what the command line says a file is, over what its name says.
type as struct{ name, os, arch string }

func (a *as) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.name, "name", "", "what the file is, as devopsAgent or worker-agent.jar (default: from its name)")
	cmd.Flags().StringVar(&a.os, "os", "", "linux, darwin, windows or any (default: from its name)")
	cmd.Flags().StringVar(&a.arch, "arch", "", "amd64, arm64 ... or any (default: from its name)")
}

// target is what a file is.
func (a *as) target(path string) (trust.Target, error) {
	full, err := filepath.Abs(path)
	if err != nil {
		return trust.Target{}, err
	}
	t, err := trust.TargetOf(full)
	if err != nil && (a.name == "" || a.os == "" || a.arch == "") {
		return trust.Target{}, &targetError{err}
	}
	for _, one := range []struct {
		given string
		to    *string
	}{{a.name, &t.Name}, {a.os, &t.OS}, {a.arch, &t.Arch}} {
		if one.given != "" {
			*one.to = one.given
		}
	}
	return t, nil
}

// targetError: neither the name of a file nor the command line says what it is.
type targetError struct{ err error }

// Error names the file.
func (e *targetError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *targetError) Unwrap() error { return e.err }

// Hint says how to say it.
func (e *targetError) Hint() string {
	hint := "say it with --name, --os and --arch"
	var why interface{ Hint() string }
	if errors.As(e.err, &why) {
		hint += "; " + why.Hint()
	}
	return hint
}

func signCommand(s *streams) *cobra.Command {
	var key, version string
	var p password
	var a as
	cmd := &cobra.Command{
		Use: "sign --key KEY --version V FILE...", Short: "Write FILE.minisig beside each file", Args: usage(cobra.MinimumNArgs(1)),
		Long: "sign signs files, and what they are: name, version, system and architecture. Agents that trust the key refuse a\n" +
			"file that is offered as anything else. What a file is follows from the name that BK-CI hands it out by, as\n" +
			"upgrade/devopsAgent_linux_arm64, jar/worker-agent.jar or jre/linux/jdk17.zip, or from --name, --os and --arch.\n\n" + passwordHelp,
		Example: "  packager sign --key release.key --version v1.2.3 upgrade/* jar/worker-agent.jar",
		PreRunE: need("key", "version"),
		RunE: func(cmd *cobra.Command, files []string) error {
			if files = unsigned(files); len(files) == 0 {
				return &usageError{cmd: cmd, err: errors.New("these are signatures, and there is no file to sign")}
			}
			targets := make([]trust.Target, len(files)) // all of them, before anybody types a password
			for i, file := range files {
				var err error
				if targets[i], err = a.target(file); err != nil {
					return err
				}
			}
			secret, err := readSecret(s, key, &p)
			if err != nil {
				return err
			}
			now := time.Now()
			for i, file := range files {
				t := targets[i]
				sig, err := trust.Sign(file, secret, trust.Claim{Name: t.Name, OS: t.OS, Arch: t.Arch, Version: version, Time: now})
				if err != nil {
					return err
				}
				// What does not verify is not published, whatever the reason.
				if _, err := (trust.Policy{Keys: []trust.Key{secret.Key()}, Require: true}).Check(file, sig, t); err != nil {
					return err
				}
				if err := swap.WriteFile(file+signatureSuffix, sig, 0o644); err != nil {
					return err
				}
				if _, err := fmt.Fprintf(s.out, "%s: signed as %v %s\n", file, t, version); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "`file` of the secret key")
	cmd.Flags().StringVar(&version, "version", "", "version that the files are, as v1.2.3")
	a.flags(cmd)
	p.flags(cmd)
	return cmd
}

// unsigned leaves out the signatures, which "upgrade/*" names as well when files are signed again.
func unsigned(files []string) []string {
	return slices.DeleteFunc(slices.Clone(files), func(name string) bool { return strings.HasSuffix(name, signatureSuffix) })
}

func readSecret(s *streams, path string, p *password) (trust.Secret, error) {
	text, err := readKeyFile(path)
	if err != nil {
		return trust.Secret{}, err
	}
	word := ""
	switch {
	case trust.Encrypted(text):
		if word, err = p.read(s, false); err != nil {
			return trust.Secret{}, err
		}
	case p.file != "":
		return trust.Secret{}, fmt.Errorf("read %s: %w", path, errIsOpen)
	}
	secret, err := trust.ParseSecret(text, word)
	if err != nil {
		return trust.Secret{}, fmt.Errorf("read %s: %w", path, err)
	}
	return secret, nil
}

func readKeyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	return text, nil
}

func verifyCommand(s *streams) *cobra.Command {
	var keys []string
	var a as
	var b release
	cmd := &cobra.Command{
		Use: "verify PACKAGE|DIR... | --pub KEY FILE...", Short: "Check packages, or files against the FILE.minisig beside them", Args: usage(cobra.MinimumNArgs(1)),
		Long: "verify checks files as an agent does that requires signatures: who signed, that nothing was changed since, and that\n" +
			"each is what its name says, or --name, --os and --arch. It goes through all files and fails when one is not good.\n" +
			"Packages, and directories with packages and SHA256SUMS, are read by readers that know nothing of who wrote them: their own\n" +
			"digests, the sums (and their signature, with --pub), and each against the manifest of the programs in --bin.",
		Example: "  packager verify --pub release.key.pub upgrade/devopsAgent_linux\n  packager verify dist",
		RunE: func(cmd *cobra.Command, files []string) error {
			policy := trust.Policy{Require: true}
			for _, text := range keys {
				key, err := readPublic(text)
				if err != nil {
					return err
				}
				policy.Keys = append(policy.Keys, key)
			}
			ours, files := packagesAmong(files)
			if len(files) == 0 {
				return verifyPackages(cmd.Context(), s, b, policy, ours)
			}
			if len(keys) == 0 {
				return need("pub")(cmd, files)
			}
			if len(ours) > 0 {
				if err := verifyPackages(cmd.Context(), s, b, policy, ours); err != nil {
					return err
				}
			}
			if files = unsigned(files); len(files) == 0 {
				return &usageError{cmd: cmd, err: errors.New("these are signatures; name the files beside them")}
			}
			var errs []error
			for _, file := range files {
				claim, err := verify(policy, &a, file)
				if err == nil {
					_, err = fmt.Fprintf(s.out, "%s: good, %v, key %s\n", file, claim, claim.KeyID)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringArrayVar(&keys, "pub", nil, "`file` of a public key, or the key itself; may be given again")
	a.flags(cmd)
	b.flags(cmd)
	return cmd
}

func verify(policy trust.Policy, a *as, file string) (trust.Claim, error) {
	want, err := a.target(file)
	if err != nil {
		return trust.Claim{}, err
	}
	sig, err := trust.ReadSignature(file + signatureSuffix)
	if err != nil {
		return trust.Claim{}, err
	}
	return policy.Check(file, sig, want)
}

// readPublic takes a file, or the line of base64 that is in it.
func readPublic(text string) (trust.Key, error) {
	if key, err := trust.ParseKey(text); err == nil {
		return key, nil
	}
	data, err := readKeyFile(text)
	if err != nil {
		return trust.Key{}, err
	}
	key, err := trust.ParseKey(string(data))
	if err != nil {
		return trust.Key{}, fmt.Errorf("read %s: %w", text, err)
	}
	return key, nil
}
