package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/devops-agent/devops-agent/agent"
	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/job"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// enrolment is what a command line says about getting an identity.
type enrolment struct {
	gateway, tokenFile, zone, pin string
	again                         bool
}

func (e *enrolment) flags(flags *pflag.FlagSet) {
	flags.StringVar(&e.gateway, "gateway", "", "address of the server")
	flags.StringVar(&e.tokenFile, "token-file", "", "file with the install token, - for standard input")
	flags.StringVar(&e.zone, "zone", "", "zone of the server, where it has several")
	flags.StringVar(&e.pin, "pin", "", "`SHA-256` fingerprint of the server's certificate, for one that no authority vouches for")
}

func enrollCommand(where *place) *cobra.Command {
	var e enrolment
	cmd := &cobra.Command{
		Use: "enroll", Short: "Make this machine an agent of a server", Args: usage(cobra.NoArgs),
		Long: "enroll makes an agent record on the server and writes its identity into the home directory.\n" +
			"The install token comes from --token-file, from the variable " + job.TokenVariable + ", or from standard input;\n" +
			"without any of them and without --gateway, from [enroll] in agent.toml, " + config.EnrollTokenFile + " or a file of enroll.d;\n" +
			"never from the command line, where every user of the machine could read it.\n" +
			"A machine that is enrolled already is left alone; --again gives it a new record and a new identity. The old record stays\n" +
			"on the server until somebody deletes it there.",
		Example: "  devopsController enroll-token | devopsAgent enroll --gateway http://ci.example.com\n" +
			"  devopsAgent enroll --gateway https://ci.example.com --token-file token --pin 3F:A0:… # of a controller's own certificate",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, inst, err := where.open()
			if err != nil {
				return err
			}
			if err := l.mayChange(cmd, nil); err != nil {
				return err
			}
			if e.again {
				lock, err := quiescent(cmd.Context(), l, inst, "enroll --again")
				if err != nil {
					return err
				}
				defer func() { _ = lock.Release() }() // at the latest, the end of the process does
			}
			id, done, err := e.run(cmd, inst)
			if err != nil {
				return err
			}
			word := "enrolled as"
			if !done {
				word = "already enrolled as"
			}
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", word, id); err != nil {
				return err
			}
			if !done {
				if hint := e.elsewhere(inst.Home); hint != "" {
					if _, err := fmt.Fprintln(cmd.ErrOrStderr(), "hint: "+hint); err != nil {
						return err
					}
				}
			}
			if runner := (&job.Runner{Home: inst.Home, Programs: programs(inst.Home), GOOS: runtime.GOOS}); !runner.HasWorker() {
				_, err = fmt.Fprintf(cmd.ErrOrStderr(), "hint: builds need a worker: copy devopsWorker, or worker-agent.jar and a jdk17 directory, into %s\n", inst.Home)
			}
			return err
		},
	}
	e.flags(cmd.Flags())
	cmd.Flags().BoolVar(&e.again, "again", false, "give a machine that has an identity a new one; the agent must be stopped")
	return cmd
}

// run enrols a home, and reports its id and whether anything was done.
func (e enrolment) run(cmd *cobra.Command, inst *service.Installation) (id string, done bool, err error) {
	cfg, err := config.LoadConfig(inst.Config)
	if err != nil {
		return "", false, err
	}
	var how config.Enrolment
	if e.gateway == "" && e.tokenFile == "" && os.Getenv(job.TokenVariable) == "" { // as the waiting service would
		found, err := cfg.Enrolment(os.Getenv)
		if err != nil {
			return "", false, err
		}
		if found != nil {
			how = *found
		}
	}
	pin := how.Pin
	if pin.IsZero() {
		pin = cfg.Enroll.Pin
	}
	if e.pin != "" {
		if pin, err = wire.ParsePin(e.pin); err != nil {
			return "", false, fmt.Errorf("enroll: --pin: %w", err)
		}
	}
	gateway, zone, tokenFile := or(e.gateway, or(how.Gateway, cfg.Enroll.Gateway)), or(e.zone, or(how.Zone, cfg.Enroll.Zone)), or(e.tokenFile, or(how.TokenFile, cfg.Enroll.TokenFile))
	if gateway == "" {
		return "", false, &missingError{"no gateway", "give its address by --gateway, as gateway of [enroll] in agent.toml, or in a file of " + cfg.EnrollFiles()}
	}
	token := how.Token
	if token == "" {
		if token, err = readToken(cmd.Context(), tokenFile, cmd.InOrStdin(), cmd.ErrOrStderr()); err != nil {
			return "", false, err
		}
	}
	roots, err := config.Roots(inst.Home)
	if err != nil {
		return "", false, err
	}
	home := inst.Home
	if e.again { // beside the old identity, which stays until the new one is complete
		if home, err = os.MkdirTemp(inst.Home, ".agent-package-*"); err != nil {
			return "", false, fmt.Errorf("enroll: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(home)) }()
	}
	id, done, err = agent.Enrolment{
		Home: home, Gateway: gateway, Token: token, Zone: zone, Project: how.Project, Pin: pin, GOOS: runtime.GOOS, GOARCH: runtime.GOARCH,
		HTTP: wire.NewHTTPClient(wire.HTTPOptions{Roots: roots, Proxy: config.Proxy(cfg, config.Settings{}, nil)}),
		Log:  slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)),
	}.Run(cmd.Context())
	if err == nil && e.again {
		err = adopt(inst, home)
	}
	// Also after a failure: what is remembered for the next try must be the agent's, too.
	return id, done, errors.Join(err, giveToOwner(inst, ""))
}

// elsewhere says that a machine that was left alone belongs to another server than the one of the command line, and how it would
// move; "" when it does not. That is no failure: servers name themselves as they like, and who sets machines up repeats it.
func (e enrolment) elsewhere(home string) string {
	store, err := config.Open(home, &config.Config{}, slog.New(slog.DiscardHandler))
	if err != nil || e.gateway == "" {
		return ""
	}
	now := wire.BaseURL(store.Settings().Gateway)
	if strings.EqualFold(now, wire.BaseURL(e.gateway)) {
		return ""
	}
	return "it belongs to " + now + " and stays there; to move it, stop it, and type the same with --again"
}

// adopt puts a new identity in the place of the old one; the old copy goes first, it must never come back.
func adopt(inst *service.Installation, from string) error {
	if err := os.Remove(inst.Path(config.BackupFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("enroll: %w", err)
	}
	for _, f := range []struct {
		name string
		mode os.FileMode
	}{{config.CertFile, 0o644}, {config.PropertiesFile, 0o600}} {
		data, err := os.ReadFile(filepath.Join(from, f.name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = swap.WriteFile(inst.Path(f.name), data, f.mode)
		}
		if err != nil {
			return fmt.Errorf("enroll: %w", err)
		}
	}
	return nil
}

// missingError: enroll was not told something.
type missingError struct{ what, do string }

// Error says what.
func (e *missingError) Error() string { return "enroll: " + e.what }

// Hint says how to tell it.
func (e *missingError) Hint() string { return e.do }

// readToken reads the install token. A person at a terminal is asked, and what they type is not shown.
func readToken(ctx context.Context, file string, stdin io.Reader, prompt io.Writer) (wire.Secret, error) {
	var data []byte
	var err error
	// Nobody can interrupt a read of a terminal or a pipe: it is left behind, and ends with the program.
	patiently := func(read func() ([]byte, error)) ([]byte, error) {
		type answer struct {
			data []byte
			err  error
		}
		answered := make(chan answer, 1)
		go func() {
			data, err := read()
			answered <- answer{data, err}
		}()
		select {
		case a := <-answered:
			return a.data, a.err
		case <-ctx.Done():
			return nil, errors.New("interrupted")
		}
	}
	keyboard, _ := stdin.(*os.File)
	switch variable := os.Getenv(job.TokenVariable); {
	case file != "" && file != "-":
		data, err = os.ReadFile(file)
	case file == "" && variable != "":
		data = []byte(variable)
	case keyboard != nil && term.IsTerminal(int(keyboard.Fd())):
		_, _ = fmt.Fprint(prompt, "install token: ")
		before, _ := term.GetState(int(keyboard.Fd()))
		data, err = patiently(func() ([]byte, error) { return term.ReadPassword(int(keyboard.Fd())) })
		if ctx.Err() != nil && before != nil {
			_ = term.Restore(int(keyboard.Fd()), before) // what is typed next is to be seen again
		}
		_, _ = fmt.Fprintln(prompt)
	default:
		data, err = patiently(func() ([]byte, error) { return io.ReadAll(io.LimitReader(stdin, 64<<10)) })
	}
	if err != nil {
		return "", fmt.Errorf("enroll: read install token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	switch {
	case token == "":
		return "", &missingError{"no install token",
			"give it by --token-file, in the variable " + job.TokenVariable + ", or on standard input; \"devopsController enroll-token\" or BK-CI's batch install page makes one"}
	case strings.ContainsAny(token, "\r\n"):
		return "", &missingError{"more than one line where the install token should be", "give the token alone"}
	}
	return wire.Secret(token), nil
}
