package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/controller"
)

func TestAControllerWithACertificateOfItsOwn(t *testing.T) {
	path, dir := program(t), t.TempDir()
	p := start(t, path, dir, "127.0.0.1:0", "--tls", "self", "--tls-name", "ci.example.com")
	defer p.kill(t)
	if !strings.HasPrefix(p.url, "https://127.0.0.1:") {
		t.Fatalf("serves %s", p.url)
	}
	text, _, code := cmdline(t, path, dir, "certificate", "--fingerprint")
	pin, err := wire.ParsePin(text)
	if code != 0 || err != nil {
		t.Fatalf("%d %q %v", code, text, err)
	}
	var shown struct {
		SHA256, File string
		Names        []string
	}
	out, _, _ := cmdline(t, path, dir, "certificate", "--json")
	if err := json.Unmarshal([]byte(out), &shown); err != nil || shown.SHA256 != pin.String() || !strings.Contains(strings.Join(shown.Names, " "), "ci.example.com") {
		t.Errorf("%s %v", out, err)
	}
	// On its own machine it is found and trusted by the data directory, elsewhere by the pin.
	if _, errs, code := cmdline(t, path, dir, "agents"); code != 0 {
		t.Errorf("agents: %d %s", code, errs)
	}
	_, errs, code := cmdline(t, path, dir, "enroll-token")
	if code != 0 || !strings.Contains(errs, "--gateway "+p.url+" --pin "+pin.String()) {
		t.Errorf("enroll-token: %d %s", code, errs)
	}
	far := []string{"--url", p.url, "--token-file", filepath.Join(dir, controller.TokenFile)}
	if _, errs, code := cmdline(t, path, t.TempDir(), append(far, "agents", "--pin", pin.String())...); code != 0 {
		t.Errorf("with a pin: %d %s", code, errs)
	}
	if _, errs, code := cmdline(t, path, t.TempDir(), append(far, "agents")...); code != 1 || !strings.Contains(errs, "hint: name its SHA-256 fingerprint with --pin") {
		t.Errorf("without a pin: %d %s", code, errs)
	}
	if _, errs, code := cmdline(t, path, t.TempDir(), append(far, "agents", "--pin", wire.PinOf(nil).String())...); code != 1 || !strings.Contains(errs, pin.String()) {
		t.Errorf("with a wrong pin: %d %s", code, errs)
	}

	// Another one is taken while it runs, and the command line follows.
	out, _, code = cmdline(t, path, dir, "certificate", "--renew", "--name", "new.example.com")
	if code != 0 || !strings.Contains(out, "new.example.com ci.example.com") || strings.Contains(out, pin.String()) {
		t.Fatalf("renew: %d %s", code, out)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		at, err := readEndpoint(dir)
		if err == nil && at.SHA256 != pin.String() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it still serves the old one: %+v %v", at, err)
		}
		<-time.After(20 * time.Millisecond)
	}
	if _, errs, code := cmdline(t, path, dir, "agents"); code != 0 {
		t.Errorf("agents: %d %s", code, errs)
	}
	for _, name := range []string{controller.OwnKeyFile, endpointFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm()&0o077 != 0 && os.PathSeparator == '/' {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
}

func TestAControllerWithACertificateOfTheOperators(t *testing.T) {
	path, dir, certs := program(t), t.TempDir(), t.TempDir()
	cert, key, err := controller.OwnCertificate(certs, []string{"ci.example.com"}, time.Now()) // for no name of this machine's
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, path, dir, "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key)
	defer p.kill(t)
	if _, errs, code := cmdline(t, path, dir, "agents"); code != 0 {
		t.Errorf("agents: %d %s", code, errs)
	}
	if _, errs, code := cmdline(t, path, dir, "enroll-token"); code != 0 || strings.Contains(errs, "--pin") {
		t.Errorf("enroll-token: %d %s", code, errs)
	}
	if out, _, code := cmdline(t, path, dir, "certificate"); code != 0 || !strings.Contains(out, cert) || !strings.Contains(out, "ci.example.com") {
		t.Errorf("certificate: %d %s", code, out)
	}
	if _, err := os.Stat(filepath.Join(dir, controller.OwnCertFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a certificate was made: %v", err)
	}
}

func TestFlagsOfTLSThatDoNotFit(t *testing.T) {
	dir := t.TempDir()
	for _, args := range []string{"--tls yes", "--tls-cert a", "--tls-key a", "--tls self --tls-cert a --tls-key b", "--tls-name a", "--tls-cert none --tls-key none"} {
		root := commands(&flags{out: io.Discard, err: io.Discard})
		root.SetArgs(append([]string{"serve", "--data", dir, "--listen", "127.0.0.1:0"}, strings.Fields(args)...))
		if err := root.ExecuteContext(t.Context()); err == nil {
			t.Errorf("%s: it starts", args)
		}
	}
	root := commands(&flags{out: io.Discard, err: io.Discard})
	root.SetArgs([]string{"certificate", "--data", t.TempDir()})
	var hint interface{ Hint() string }
	if err := root.ExecuteContext(t.Context()); !errors.As(err, &hint) || !strings.Contains(hint.Hint(), "--tls self") {
		t.Errorf("no certificate: %v", err)
	}
}
