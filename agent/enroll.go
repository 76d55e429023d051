package agent

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// Enrolment turns a home directory without identity into one that has an agent record on the server, by the recipe
// of protocol §5.5. Doing it again changes nothing.
type Enrolment struct {
	Home    string
	Gateway string
	Token   wire.Secret // batch install token, protocol §5.3
	Zone    string      // "" for the server's default
	Project string      // the record must be of this project; "" takes any
	Pin     wire.Pin    // the server's certificate must be this one, and becomes the agent's .cert; the zero value: an authority vouches for it
	GOOS    string
	GOARCH  string
	HTTP    *http.Client
	Log     *slog.Logger
}

// Limits of what an enrolment downloads.
const (
	maxScript     = 1 << 20
	maxPackage    = 2 << 30 // a package may hold two JDKs
	maxProperties = 1 << 20
	enrolLimit    = 30 * time.Minute
)

// enrolmentFile remembers the record that the server made, until its package is here: a second try must not make a
// second record (protocol §5.5, step 5).
const enrolmentFile = ".enrolment"

// packagePattern names what an enrolment writes while it is at work.
const packagePattern = ".agent-package-*"

// Run enrols, and reports the agent's id and whether anything was done. A home that has an identity is left alone.
func (e Enrolment) Run(ctx context.Context) (id string, done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, enrolLimit)
	defer cancel()
	id, err = identityIn(e.Home)
	if err != nil {
		return "", false, fmt.Errorf("enrol: %w", err)
	}
	if id != "" {
		return id, false, nil
	}
	if err := wire.CheckGateway(e.Gateway); err != nil {
		return "", false, fmt.Errorf("enrol: %w", err)
	}
	var pinned []byte
	if !e.Pin.IsZero() {
		client, cert, err := e.Pin.Trust(ctx, e.Gateway, e.HTTP)
		if err != nil {
			return "", false, fmt.Errorf("enrol at %s: %w", e.Gateway, err)
		}
		defer client.CloseIdleConnections()
		e.HTTP, pinned = client, wire.CertificatePEM(cert)
	}
	link, err := e.link(ctx)
	if err != nil {
		return "", false, fmt.Errorf("enrol at %s: %w", e.Gateway, err)
	}
	properties, cert, err := e.fetch(ctx, link)
	if err == nil {
		err = e.verify(properties, link.agent)
	}
	if err != nil {
		return "", false, fmt.Errorf("enrol at %s: fetch package of agent %s: %w", e.Gateway, link.agent,
			&packageError{err: err, note: filepath.Join(e.Home, enrolmentFile)})
	}
	path := filepath.Join(e.Home, config.CertFile)
	if cert, err = certificates(path, cert, pinned); err != nil {
		return "", false, fmt.Errorf("enrol: %w", err)
	}
	if len(cert) > 0 {
		// Not a secret, and workers of another account read it.
		if err := swap.WriteFile(path, cert, 0o644); err != nil {
			return "", false, fmt.Errorf("enrol: %w", err)
		}
	}
	path = filepath.Join(e.Home, config.PropertiesFile)
	if err := swap.WriteFile(path, properties, 0o600); err != nil {
		return "", false, fmt.Errorf("enrol: %w", err)
	}
	if err := os.Remove(filepath.Join(e.Home, enrolmentFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		e.Log.Warn("Note of a finished enrolment not removed", "err", err)
	}
	return link.agent, true, nil
}

// certificates are what the agent shall trust on top of the system's: those of its package or, when there are none, those
// of the file at path, and the pinned one.
func certificates(path string, packaged, pinned []byte) ([]byte, error) {
	if len(pinned) == 0 {
		return packaged, nil
	}
	if len(packaged) == 0 {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return pinned, nil
		}
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		if packaged, err = io.ReadAll(io.LimitReader(f, maxProperties)); err != nil {
			return nil, err
		}
	}
	if bytes.Contains(packaged, bytes.TrimSpace(pinned)) {
		return packaged, nil
	}
	if packaged = bytes.TrimSpace(packaged); len(packaged) > 0 {
		packaged = append(packaged, '\n')
	}
	return append(packaged, pinned...), nil
}

// identityIn is the id of the agent that a home already is, "" when it is none. A file that has an identity and
// that cannot be used for another reason is an error: a second record would not mend it.
func identityIn(home string) (string, error) {
	store, err := config.Open(home, &config.Config{}, slog.New(slog.DiscardHandler))
	if err == nil {
		return store.Settings().Identity.Agent, nil
	}
	if Unenrolled(err) {
		return "", nil
	}
	return "", err
}

// verify reads the properties of a package as an agent would, before they become ours.
func (e Enrolment) verify(properties []byte, agent string) (err error) {
	dir, err := os.MkdirTemp(e.Home, packagePattern)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.WriteFile(filepath.Join(dir, config.PropertiesFile), properties, 0o600); err != nil {
		return err
	}
	store, err := config.Open(dir, &config.Config{}, slog.New(slog.DiscardHandler))
	if Unenrolled(err) {
		return fmt.Errorf("no identity in its %s", config.PropertiesFile)
	}
	if err != nil {
		return err
	}
	switch got := store.Settings().Identity; {
	case got.Agent != agent:
		return fmt.Errorf("it holds the identity of %q", got.Agent)
	case e.Project != "" && got.Project != e.Project:
		return fmt.Errorf("the install token is of project %q, and this machine is meant for %q", got.Project, e.Project)
	}
	return nil
}

// link is where the package of a fresh record is.
type link struct{ agent, project, address string }

var (
	scriptAgent   = regexp.MustCompile(`(?m)^\s*(?:set\s+|export\s+|\$)?"?(?:agent_id|AGENT_ID)\s*=\s*['"]?([A-Za-z0-9_-]{1,64})['"]?\s*$`)
	scriptProject = regexp.MustCompile(`(?m)^\s*(?:set\s+|export\s+|\$)?"?(?:project_id|projectId|PROJECT_ID)\s*=\s*['"]?([A-Za-z0-9_.-]{1,128})['"]?\s*$`)
	scriptAddress = regexp.MustCompile(`https?://[^\s'"]+/api/external/thirdPartyAgent/([A-Za-z0-9_-]{1,64})/agent(?:\?[^\s'"]*)?`)
)

// link makes a record on the server, or finds the one that an earlier try made.
func (e Enrolment) link(ctx context.Context) (link, error) {
	note := filepath.Join(e.Home, enrolmentFile)
	if data, err := os.ReadFile(note); err == nil {
		parts := strings.Split(strings.TrimSpace(string(data)), "\n")
		if len(parts) == 4 && parts[0] == wire.BaseURL(e.Gateway) { // another server has another record
			return link{parts[1], parts[2], parts[3]}, nil
		}
	}
	query := url.Values{}
	if e.Zone != "" {
		query.Set("zoneName", e.Zone)
	}
	address := wire.BaseURL(e.Gateway) + wire.PathExternal + "/" + serverOS(e.GOOS) + "/batchInstall"
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return link{}, err
	}
	req.Header.Set(wire.HeaderInstallToken, string(e.Token))
	resp, err := e.HTTP.Do(req)
	if err != nil {
		return link{}, unreached(err)
	}
	defer func() { _ = resp.Body.Close() }()
	script, err := io.ReadAll(io.LimitReader(resp.Body, maxScript))
	if err != nil {
		return link{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return link{}, &tokenError{code: resp.StatusCode}
	}
	found, err := readScript(string(script))
	if err != nil {
		return link{}, err
	}
	err = swap.WriteFile(note, []byte(strings.Join([]string{wire.BaseURL(e.Gateway), found.agent, found.project, found.address, ""}, "\n")), 0o600)
	return found, err
}

// readScript finds the identity and the package address in an install script (protocol §5.3).
func readScript(script string) (link, error) {
	var found link
	if m := scriptAddress.FindStringSubmatch(script); m != nil {
		found.address, found.agent = m[0], m[1]
	}
	if m := scriptAgent.FindStringSubmatch(script); m != nil && found.agent != "" && m[1] != found.agent {
		return link{}, fmt.Errorf("the server's install script is for agent %s and fetches the package of agent %s", m[1], found.agent)
	}
	if m := scriptProject.FindStringSubmatch(script); m != nil {
		found.project = m[1]
	}
	if found.address == "" {
		return link{}, errors.New("the server's install script holds no package address")
	}
	return found, nil
}

// fetch downloads the package and takes the two files out of it that are the identity. Programs come from our own
// package, not from there.
func (e Enrolment) fetch(ctx context.Context, l link) (properties, cert []byte, err error) {
	address, err := url.Parse(l.address)
	if err != nil {
		return nil, nil, fmt.Errorf("address of the package: %w", unreached(err))
	}
	if base, _ := url.Parse(wire.BaseURL(e.Gateway)); base == nil || base.Scheme == "https" && address.Scheme != "https" {
		return nil, nil, errors.New("the server wants the package fetched over http after https")
	}
	query := address.Query()
	query.Del("arch") // the script has a shell variable there
	if arch := serverArch(e.GOARCH); arch != "" {
		query.Set("arch", arch)
	}
	address.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set(wire.HeaderProject, l.project)
	resp, err := e.HTTP.Do(req)
	if err != nil {
		return nil, nil, unreached(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("server answered HTTP %d", resp.StatusCode)
	}
	if left, err := filepath.Glob(filepath.Join(e.Home, packagePattern)); err == nil { // of a try that was killed
		for _, name := range left {
			_ = os.RemoveAll(name)
		}
	}
	file, err := os.CreateTemp(e.Home, packagePattern)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	size, err := io.Copy(file, io.LimitReader(resp.Body, maxPackage+1))
	if err != nil {
		return nil, nil, err
	}
	if size > maxPackage {
		return nil, nil, fmt.Errorf("longer than %d bytes", int64(maxPackage))
	}
	return readPackage(file, size)
}

// readPackage takes .agent.properties and .cert out of an agent package (protocol §5.4).
func readPackage(file io.ReaderAt, size int64) (properties, cert []byte, err error) {
	archive, err := zip.NewReader(file, size)
	if err != nil {
		return nil, nil, err
	}
	for _, entry := range archive.File {
		switch entry.Name {
		case config.PropertiesFile:
			properties, err = readEntry(entry)
		case ".cert":
			cert, err = readEntry(entry)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", entry.Name, err)
		}
	}
	if len(properties) == 0 {
		return nil, nil, fmt.Errorf("no %s in it", config.PropertiesFile)
	}
	return properties, cert, nil
}

func readEntry(entry *zip.File) ([]byte, error) {
	r, err := entry.Open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	data, err := io.ReadAll(io.LimitReader(r, maxProperties+1))
	if err == nil && len(data) > maxProperties {
		err = fmt.Errorf("longer than %d bytes", maxProperties)
	}
	return data, err
}

// serverOS is the server's name of an operating system (protocol §5.2).
func serverOS(goos string) string {
	switch goos {
	case "darwin":
		return "MACOS"
	case "windows":
		return "WINDOWS"
	}
	return "LINUX"
}

// serverArch is the server's name of an architecture: amd64 has none (protocol §5.4).
func serverArch(goarch string) string {
	switch goarch {
	case "arm64", "mips64":
		return goarch
	}
	return ""
}

// tokenError: the server did not make a record.
type tokenError struct{ code int }

// Error names the HTTP status.
func (e *tokenError) Error() string {
	return fmt.Sprintf("server answered HTTP %d to the install token", e.code)
}

// Hint says where a token comes from.
func (e *tokenError) Hint() string {
	if e.code == http.StatusBadRequest || e.code == http.StatusUnauthorized {
		return "the token is wrong or older than three days, or it is used up or revoked; make a new one (devopsController enroll-token, or BK-CI's batch install page)"
	}
	return ""
}

// packageError: the record is made and its package is not here.
type packageError struct {
	err  error
	note string
}

// Error is the text of the cause.
func (e *packageError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *packageError) Unwrap() error { return e.err }

// Hint says how to go on.
func (e *packageError) Hint() string {
	return "run \"devopsAgent enroll\" again: it goes on with this record; remove " + e.note + " first to make another one"
}
