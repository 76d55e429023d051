package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/upgrader/trust"
)

func keygenCommand(s *streams) *cobra.Command {
	var out string
	var p password
	var open bool
	cmd := &cobra.Command{
		Use: "keygen", Short: "Make a key to sign with", Args: usage(cobra.NoArgs),
		Long: "keygen writes a secret key to the file KEY, readable by you alone, and its public half to KEY.pub.\n" +
			"The line of the latter that begins with RW goes into trust.keys of every agent.toml. minisign reads both files.\n" +
			"Neither file may exist yet. Protecting and using a key with a password takes 1 GiB of memory and some seconds.\n\n" + passwordHelp,
		Example: "  packager keygen --out release.key --password-file release.password",
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
			public, err := writeKey(out, word)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(s.out, "secret key in %s: keep it, and its password, where nobody else reads them\npublic key %s in %s.pub, for agent.toml:\n\n[trust]\nkeys = [%q]\n",
				out, public.ID(), out, public.String())
			return err
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "`file` for the secret key")
	cmd.Flags().BoolVar(&open, "no-password", false, "leave the secret key unprotected")
	p.flags(cmd)
	return cmd
}

// existsError: a key would be overwritten, and with it everything that only that key can sign.
type existsError struct{ path string }

// Error names the file.
func (e *existsError) Error() string { return e.path + " is there already" }

// Hint says what to do.
func (e *existsError) Hint() string { return "choose another name; keys are never overwritten" }

// writeKey makes a key and writes its halves to path and path.pub. When it fails, neither is there.
func writeKey(path, password string) (_ trust.Key, err error) {
	public, secret, err := trust.GenerateKey()
	if err != nil {
		return trust.Key{}, err
	}
	text, err := trust.MarshalSecret(secret, password)
	if err != nil {
		return trust.Key{}, err
	}
	if err := create(path, append(text, '\n'), 0o600); err != nil {
		return trust.Key{}, fmt.Errorf("write secret key: %w", err)
	}
	line, err := public.MarshalText()
	if err == nil {
		err = create(path+".pub", line, 0o644)
	}
	if err != nil {
		return trust.Key{}, errors.Join(fmt.Errorf("write public key: %w", err), os.Remove(path))
	}
	return public, nil
}

// create writes a new file and forces it to the disk. When it fails, there is none.
func create(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
