package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/devops-agent/devops-agent/agent"
	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/job"
	"github.com/devops-agent/devops-agent/agent/wire"
)

func enrollCommand(home *string) *cobra.Command {
	var gateway, tokenFile, zone string
	cmd := &cobra.Command{
		Use: "enroll", Short: "Make this machine an agent of a server", Args: usage(cobra.NoArgs),
		Long: "enroll makes an agent record on the server and writes its identity into the home directory.\n" +
			"The install token comes from --token-file, from the variable " + job.TokenVariable + ", or from standard input;\n" +
			"never from the command line, where every user of the machine could read it.\n" +
			"A machine that is enrolled already is left alone.",
		Example: "  devopsController enroll-token | devopsAgent enroll --gateway http://ci.example.com",
		RunE: func(cmd *cobra.Command, _ []string) error {
			inst, err := open(*home)
			if err != nil {
				return err
			}
			cfg, err := config.LoadConfig(inst.Config)
			if err != nil {
				return err
			}
			if gateway == "" {
				gateway = cfg.Enroll.Gateway
			}
			if zone == "" {
				zone = cfg.Enroll.Zone
			}
			if tokenFile == "" {
				tokenFile = cfg.Enroll.TokenFile
			}
			if gateway == "" {
				return &missingError{"no gateway", "give its address by --gateway, or as gateway of [enroll] in agent.toml"}
			}
			token, err := readToken(tokenFile, cmd.InOrStdin(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			roots, err := config.Roots(inst.Home)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			id, done, err := agent.Enrolment{
				Home: inst.Home, Gateway: gateway, Token: token, Zone: zone, GOOS: runtime.GOOS, GOARCH: runtime.GOARCH,
				HTTP: wire.NewHTTPClient(wire.HTTPOptions{Roots: roots, Proxy: config.Proxy(cfg, config.Settings{}, nil)}), Log: log,
			}.Run(cmd.Context())
			if err != nil {
				return err
			}
			word := "enrolled as"
			if !done {
				word = "already enrolled as"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", word, id)
			return err
		},
	}
	cmd.Flags().StringVar(&gateway, "gateway", "", "address of the server")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file with the install token, - for standard input")
	cmd.Flags().StringVar(&zone, "zone", "", "zone of the server, where it has several")
	return cmd
}

// missingError: enroll was not told something.
type missingError struct{ what, do string }

// Error says what.
func (e *missingError) Error() string { return "enroll: " + e.what }

// Hint says how to tell it.
func (e *missingError) Hint() string { return e.do }

// readToken reads the install token. A person at a terminal is asked, and what they type is not shown.
func readToken(file string, stdin io.Reader, prompt io.Writer) (wire.Secret, error) {
	var data []byte
	var err error
	keyboard, _ := stdin.(*os.File)
	switch variable := os.Getenv(job.TokenVariable); {
	case file != "" && file != "-":
		data, err = os.ReadFile(file)
	case file == "" && variable != "":
		data = []byte(variable)
	case keyboard != nil && term.IsTerminal(int(keyboard.Fd())):
		_, _ = fmt.Fprint(prompt, "install token: ")
		data, err = term.ReadPassword(int(keyboard.Fd()))
		_, _ = fmt.Fprintln(prompt)
	default:
		data, err = io.ReadAll(io.LimitReader(stdin, 64<<10))
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
