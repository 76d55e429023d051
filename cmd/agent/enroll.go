package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/agent"
	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/wire"
)

// tokenVariable holds the install token where it is given by the environment.
const tokenVariable = "DEVOPS_AGENT_TOKEN"

func enrollCommand(home *string) *cobra.Command {
	var gateway, tokenFile, zone string
	cmd := &cobra.Command{
		Use: "enroll", Short: "Make this machine an agent of a server", Args: cobra.NoArgs,
		Long: "enroll makes an agent record on the server and writes its identity into the home directory.\n" +
			"The install token comes from --token-file, from the variable " + tokenVariable + ", or from standard input;\n" +
			"never from the command line, where every user of the machine could read it.\n" +
			"A machine that is enrolled already is left alone.",
		Example: "  devopsController enroll-token | devopsAgent enroll --gateway http://ci.example.com",
		RunE: func(cmd *cobra.Command, _ []string) error {
			inst, err := open(*home)
			if err != nil {
				return err
			}
			cfg, err := config.LoadConfig(inst.Path("agent.toml"))
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
				return errors.New("enroll: --gateway is missing")
			}
			token, err := readToken(tokenFile, cmd.InOrStdin())
			if err != nil {
				return fmt.Errorf("enroll: read install token: %w", err)
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

func readToken(file string, stdin io.Reader) (wire.Secret, error) {
	var data []byte
	var err error
	switch variable := os.Getenv(tokenVariable); {
	case file != "" && file != "-":
		data, err = os.ReadFile(file)
	case file == "" && variable != "":
		data = []byte(variable)
	default:
		data, err = io.ReadAll(io.LimitReader(stdin, 64<<10))
	}
	token := strings.TrimSpace(string(data))
	if err == nil && (token == "" || strings.ContainsAny(token, "\r\n")) {
		err = errors.New("one line, please")
	}
	return wire.Secret(token), err
}
