package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/controller"
)

// certLook is how often serve looks whether its certificate is another.
const certLook = 2 * time.Second

// tlsFlags say whether and how serve speaks TLS.
type tlsFlags struct {
	mode, cert, key string
	names           []string
}

func (t *tlsFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&t.mode, "tls", "", "self: HTTPS with a certificate of the controller's own, made at the first start")
	fl.StringVar(&t.cert, "tls-cert", "", "`file` with the certificate for HTTPS and its chain, PEM; read again when it changes")
	fl.StringVar(&t.key, "tls-key", "", "`file` with its key, PEM")
	fl.StringSliceVar(&t.names, "tls-name", nil, "`name` or address that a certificate of the controller's own is for as well (may be repeated)")
}

// check refuses flags that do not fit together.
func (t *tlsFlags) check() error {
	switch {
	case t.mode != "" && t.mode != "self":
		return fmt.Errorf("--tls %s: self, or --tls-cert and --tls-key", t.mode)
	case (t.cert == "") != (t.key == ""):
		return errors.New("--tls-cert and --tls-key belong together")
	case t.mode == "self" && t.cert != "":
		return errors.New("--tls self and --tls-cert: only one of them")
	case len(t.names) > 0 && t.mode != "self":
		return errors.New("--tls-name is for --tls self")
	}
	return nil
}

// open reads the certificate, nil when there is to be none, and makes one of the controller's own if it was not made yet.
// The data directory is ours.
func (t *tlsFlags) open(o controller.Options, listen string) (*controller.Certificate, error) {
	certFile, keyFile := t.cert, t.key
	if t.mode == "self" {
		wanted := append([]string{}, t.names...)
		if u, err := url.Parse(o.PublicURL); err == nil {
			wanted = append(wanted, u.Hostname())
		}
		if host, _, err := net.SplitHostPort(listen); err == nil {
			if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
				wanted = append(wanted, host)
			}
		}
		var err error
		if certFile, keyFile, err = controller.OwnCertificate(o.Dir, controller.LocalNames(wanted...), time.Now()); err != nil {
			return nil, err
		}
		defer func() { warnOfNames(o.Log, certFile, wanted) }()
	}
	if certFile == "" {
		return nil, nil
	}
	certFile, err := filepath.Abs(certFile)
	if err != nil {
		return nil, err
	}
	return controller.OpenCertificate(certFile, keyFile, o.Log)
}

// warnOfNames says that a certificate of our own does not fit the names by which machines are to reach us.
func warnOfNames(log *slog.Logger, certFile string, wanted []string) {
	cert, err := controller.ReadCertificate(certFile)
	if err != nil {
		return // OpenCertificate said so
	}
	host, err := os.Hostname()
	if err == nil {
		wanted = append(wanted, host)
	}
	for _, name := range wanted {
		if name != "" && cert.VerifyHostname(name) != nil {
			log.Warn("The certificate is not for a name of this machine; devopsController certificate --renew makes another, and agents must be told of it",
				"name", name, "names", strings.Join(controller.NamesOf(cert), " "))
		}
	}
}

// untrustedError says that nobody vouches for a server's certificate.
type untrustedError struct {
	url string
	err error
}

// Error names the address.
func (e *untrustedError) Error() string { return e.url + ": " + e.err.Error() }

// Unwrap returns the cause.
func (e *untrustedError) Unwrap() error { return e.err }

// Hint says how to trust it.
func (e *untrustedError) Hint() string {
	return "name its SHA-256 fingerprint with --pin; devopsController certificate prints it on the machine of the controller"
}

func certificateCommand(f *flags) *cobra.Command {
	var renew, fingerprint, text bool
	var names []string
	cmd := &cobra.Command{
		Use: "certificate", Short: "Show the certificate of the controller, or make another of its own", Args: cobra.NoArgs,
		Long: `Show the certificate that the controller of the data directory serves, or its own where none runs.
--renew makes another key and certificate of the controller's own, for all names of the old one, those of this machine,
and --name; a controller that runs takes it within seconds. Agents that pinned the old one must get it as their .cert.`,
		RunE: func(*cobra.Command, []string) error {
			path := filepath.Join(f.dir(), controller.OwnCertFile)
			if renew {
				if old, err := controller.ReadCertificate(path); err == nil {
					names = append(names, controller.NamesOf(old)...)
				}
				if err := controller.RenewOwnCertificate(f.dir(), controller.LocalNames(names...), time.Now()); err != nil {
					return err
				}
			} else if at, err := readEndpoint(f.dir()); err == nil && at.CertFile != "" {
				path = at.CertFile
			}
			cert, err := controller.ReadCertificate(path)
			if err != nil {
				if errors.Is(err, os.ErrNotExist) {
					return &noCertificateError{dir: f.dir()}
				}
				return err
			}
			pin := wire.PinOf(cert.Raw).String()
			switch {
			case f.json:
				return f.printJSON(map[string]any{"sha256": pin, "names": controller.NamesOf(cert), "notBefore": cert.NotBefore.UnixMilli(),
					"notAfter": cert.NotAfter.UnixMilli(), "file": path, "pem": string(wire.CertificatePEM(cert))})
			case text:
				_, err = f.out.Write(wire.CertificatePEM(cert))
			case fingerprint:
				_, err = fmt.Fprintln(f.out, pin)
			default:
				_, err = fmt.Fprintf(f.out, "SHA-256  %s\nnames    %s\nuntil    %s\nfile     %s\n", pin, strings.Join(controller.NamesOf(cert), " "),
					cert.NotAfter.Format(time.DateTime), path)
			}
			return err
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&renew, "renew", false, "make another of the controller's own")
	fl.StringSliceVar(&names, "name", nil, "with --renew: `name` or address that it is for as well (may be repeated)")
	fl.BoolVar(&fingerprint, "fingerprint", false, "print only the SHA-256 fingerprint, for --pin")
	fl.BoolVar(&text, "pem", false, "print the certificate itself, PEM")
	cmd.MarkFlagsMutuallyExclusive("fingerprint", "pem")
	return cmd
}

// noCertificateError says that a controller has no certificate.
type noCertificateError struct{ dir string }

// Error names the data directory.
func (e *noCertificateError) Error() string {
	return "the controller in " + e.dir + " has no certificate"
}

// Hint says how to get one.
func (e *noCertificateError) Hint() string {
	return "serve it with --tls self, or with --tls-cert and --tls-key"
}
