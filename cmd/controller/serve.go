package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/controller"
)

// endpointFile is the file in the data directory that says where the controller listens.
const endpointFile = "endpoint.json"

// endpoint is the content of endpointFile.
type endpoint struct {
	URL string `json:"url"`
	PID int    `json:"pid"`
	// With TLS only:
	CertFile string `json:"certFile,omitempty"`
	SHA256   string `json:"sha256,omitempty"` // fingerprint of the certificate
	Own      bool   `json:"own,omitempty"`    // the controller made it for itself: nobody vouches for it
}

func serveCommand(f *flags) *cobra.Command {
	var listen, level string
	var o controller.Options
	var secure tlsFlags
	var artifacts artifactFlags
	keep := retentionFlags{builds: days(90 * 24 * time.Hour), logs: days(30 * 24 * time.Hour), bytes: 10 << 30, every: days(24 * time.Hour)}
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the controller until it is told to stop", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var min slog.Level
			if err := min.UnmarshalText([]byte(level)); err != nil {
				return fmt.Errorf("--log-level %s: debug, info, warn or error", level)
			}
			if o.PublicURL != "" {
				if err := wire.CheckGateway(o.PublicURL); err != nil {
					return fmt.Errorf("--public-url: %w", err)
				}
				o.PublicURL = wire.BaseURL(o.PublicURL)
			}
			if err := secure.check(); err != nil {
				return err
			}
			o.Dir, o.Version, o.OwnCertificate = f.dir(), cli.Version(), secure.mode == "self"
			keep.set(&o)
			if err := artifacts.set(&o); err != nil {
				return err
			}
			o.Log = slog.New(slog.NewTextHandler(f.err, &slog.HandlerOptions{Level: min}))
			return f.serve(cmd.Context(), listen, &secure, o)
		},
	}
	fl := cmd.Flags()
	keep.add(fl)
	artifacts.add(fl)
	secure.add(fl)
	fl.StringVar(&listen, "listen", "127.0.0.1:21800", "`address` to listen on; port 0 picks a free one")
	fl.StringVar(&o.PublicURL, "public-url", "", "`address` by which machines reach this controller (default: what each of them called)")
	fl.StringVar(&o.Repo, "repo", "", "`directory` of a package repository, as packager makes it, to serve below /repo/ to everybody")
	fl.StringVar(&o.SecretsKey, "secrets-key", "", "`file` with the key of secrets (default secrets.key in the data directory, made at the first start)")
	fl.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	for name, d := range map[string]struct {
		to   *time.Duration
		what string
	}{
		"offline-after":  {&o.OfflineAfter, "an agent without a sign of life is offline (default 50s)"},
		"start-within":   {&o.StartWithin, "a build whose worker did not start goes back to the queue (default 3m)"},
		"worker-silence": {&o.WorkerSilence, "a build whose worker is silent fails (default 10m)"},
		"upgrade-within": {&o.UpgradeWithin, "an agent that was offered a release and makes no progress has failed (default 15m)"},
		"upgrade-soak":   {&o.UpgradeSoak, "an agent that runs a release for so long has it for good, when it does not say so before (default 1m30s)"},
		"cancel-silence": {&o.CancelSilence, "the same while it is being cancelled (default 20s)"},
	} {
		fl.DurationVar(d.to, name, 0, d.what)
	}
	return cmd
}

// serve runs until ctx is done, then lets requests finish and closes the data base.
func (f *flags) serve(ctx context.Context, listen string, secure *tlsFlags, o controller.Options) (err error) {
	server, err := controller.Open(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	cert, err := secure.open(o, listen)
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return &listenError{err}
	}
	at := endpoint{URL: localURL(listener.Addr(), cert != nil), PID: os.Getpid()}
	describe := func() {
		if cert != nil {
			at.CertFile, at.SHA256, at.Own = cert.File(), cert.Pin().String(), o.OwnCertificate
		}
	}
	describe()
	path := filepath.Join(o.Dir, endpointFile)
	if err := writeEndpoint(path, at); err != nil { // a full disk: what is there can be read all the same
		o.Log.Error("The file that says where the controller is could not be written: commands need --url", "url", at.URL, "err", err)
	}
	defer func() { _ = os.Remove(path) }()

	// Agents keep a connection that they have opened and not used for two minutes: one that is closed by us before is closed just
	// when they use it.
	web := &http.Server{Handler: server.Handler(), ReadHeaderTimeout: 150 * time.Second, IdleTimeout: 3 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug)}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var parts sync.WaitGroup
	parts.Go(func() { stop(server.Run(ctx)) })
	if cert == nil {
		parts.Go(func() { stop(web.Serve(listener)) })
	} else {
		web.TLSConfig = cert.TLS()
		parts.Go(func() { stop(web.ServeTLS(listener, "", "")) })
	}
	if f.json {
		err = f.printJSON(at)
	} else {
		_, err = io.WriteString(f.out, greeting(at, o.Dir))
	}
	if cert != nil { // from here on at is its own
		parts.Go(func() {
			stop(cert.Run(ctx, certLook, func() {
				describe()
				if err := writeEndpoint(path, at); err != nil {
					o.Log.Error("The file that says where the controller is could not be written", "err", err)
				}
			}))
		})
	}
	if err != nil {
		stop(err)
	}
	<-ctx.Done()
	server.Release()
	grace, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	if web.Shutdown(grace) != nil {
		_ = web.Close()
	}
	parts.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, http.ErrServerClosed) {
		return cause
	}
	return nil
}

// greeting is what a person needs to go on. It is written at once: who reads only its first line must not break the pipe.
func greeting(at endpoint, dir string) string {
	token := filepath.Join(dir, controller.TokenFile)
	if full, err := filepath.Abs(token); err == nil {
		token = full
	}
	said := fmt.Sprintf("devopsController %s serves %s\n", cli.Version(), at.URL)
	if at.Own {
		said += "certificate SHA-256 " + at.SHA256 + "\n"
	}
	return said + "open it in a browser; the token to sign in with is in " + token + "\n"
}

// localURL is the address for clients on this machine.
func localURL(addr net.Addr, secure bool) string {
	scheme := "http://"
	if secure {
		scheme = "https://"
	}
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return scheme + addr.String()
	}
	host := tcp.IP.String()
	if tcp.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + net.JoinHostPort(host, fmt.Sprint(tcp.Port))
}

// readEndpoint reads where the controller of a data directory is.
func readEndpoint(dir string) (endpoint, error) {
	path := filepath.Join(dir, endpointFile)
	var at endpoint
	data, err := os.ReadFile(path)
	if err != nil {
		return at, err
	}
	if err := json.Unmarshal(data, &at); err != nil {
		return at, fmt.Errorf("read %s: %w", path, err)
	}
	return at, nil
}

func writeEndpoint(path string, at endpoint) error {
	data, err := json.Marshal(at)
	if err != nil {
		return err
	}
	fresh := path + ".new" // we hold the lock of the directory: nobody else writes here
	if err := os.WriteFile(fresh, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}
