package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Variables by which a machine without identity is told how to get one, for containers and image builds.
const (
	// EnrollTokenFile names the file with the install token.
	EnrollTokenFile = "DEVOPS_AGENT_TOKEN_FILE"
	// EnrollGateway is the address of the server; without it, that of [enroll] or [server] in agent.toml is asked.
	EnrollGateway = "DEVOPS_AGENT_GATEWAY"
	// EnrollProject is the project that the token must be of.
	EnrollProject = "DEVOPS_AGENT_PROJECT"
	// EnrollPin is the SHA-256 fingerprint of the server's certificate.
	EnrollPin = "DEVOPS_AGENT_PIN"
)

// EnrollDirectory is the directory beside agent.toml whose *.toml files say how a machine without identity gets one.
const EnrollDirectory = "enroll.d"

// Enrolment says how a machine without identity gets one (protocol §5.5): where, and by which token.
type Enrolment struct {
	Gateway   string
	TokenFile string      // where the token is, "" when Token has it
	Token     wire.Secret // in a file of enroll.d only: nobody but the agent's account can read that
	Zone      string      // "" for the server's default
	Project   string      // the token must be of this project; "" takes any
	Pin       wire.Pin    // of the server's certificate; the zero value: an authority that the machine trusts vouches for it
	From      string      // the file, or the variable, that says so; for people
}

// Enrolment finds how a machine without identity gets one: by [enroll] of agent.toml, by the environment, or by the first
// file of enroll.d in the order of names. It is nil when nothing says so. What agent.toml has of it holds for all: a gateway there
// is the gateway of a file that names none. A file that cannot be used is an error; the files behind it are not looked at, because
// a machine with a mistake in it must not end up at another server.
func (c *Config) Enrolment(getenv func(string) string) (*Enrolment, error) {
	own := Enrolment{Gateway: c.Enroll.Gateway, TokenFile: c.Enroll.TokenFile, Zone: c.Enroll.Zone, Pin: c.Enroll.Pin, From: c.Path}
	if own.Gateway != "" && own.TokenFile != "" {
		return &own, nil
	}
	if file := strings.TrimSpace(getenv(EnrollTokenFile)); file != "" {
		e := Enrolment{Gateway: or(own.Gateway, or(strings.TrimSpace(getenv(EnrollGateway)), c.Server.Gateway)), TokenFile: file, Zone: own.Zone,
			Project: strings.TrimSpace(getenv(EnrollProject)), Pin: own.Pin, From: EnrollTokenFile}
		if text := strings.TrimSpace(getenv(EnrollPin)); text != "" && e.Pin.IsZero() {
			pin, err := wire.ParsePin(text)
			if err != nil {
				return nil, &KeyError{File: "environment", Key: EnrollPin, What: "is not a fingerprint: " + err.Error(), Do: pinHelp}
			}
			e.Pin = pin
		}
		if e.Gateway == "" {
			return nil, &KeyError{File: "environment", Key: EnrollTokenFile, What: "is set, and nothing says for which server",
				Do: "set " + EnrollGateway + " to its address, or gateway of [enroll] in agent.toml"}
		}
		if err := wire.CheckGateway(e.Gateway); err != nil {
			return nil, &KeyError{File: "environment", Key: EnrollGateway, What: "is not an address: " + err.Error(), Do: `write it as in "https://devops.example.com"`}
		}
		return &e, nil
	}
	dir := c.EnrollFiles()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read how to enrol: %w", err)
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), ".toml") && !strings.HasPrefix(entry.Name(), ".") {
			return readEnrolment(filepath.Join(dir, entry.Name()), own)
		}
	}
	return nil, nil
}

// EnrollFiles is the directory of files that say how to enrol.
func (c *Config) EnrollFiles() string { return filepath.Join(filepath.Dir(c.Path), EnrollDirectory) }

// enrolmentFile is a file of enroll.d.
type enrolmentFile struct {
	Gateway   string `toml:"gateway"`
	TokenFile string `toml:"token_file"`
	Token     string `toml:"token"`
	Zone      string `toml:"zone"`
	Project   string `toml:"project"`
	Pin       string `toml:"pin"`
}

// pinHelp says where a pin comes from.
const pinHelp = "write what devopsController certificate prints on the machine of the controller"

// maxEnrolment bounds a file of enroll.d, in bytes.
const maxEnrolment = 64 << 10

// readEnrolment reads one file of enroll.d.
func readEnrolment(path string, own Enrolment) (*Enrolment, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read how to enrol: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read how to enrol: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, &KeyError{File: path, What: "is not a file", Do: "remove it"}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxEnrolment+1))
	if err != nil {
		return nil, fmt.Errorf("read how to enrol: %w", err)
	}
	if len(data) > maxEnrolment {
		return nil, &KeyError{File: path, What: fmt.Sprintf("is longer than %d bytes", maxEnrolment), Do: "it has gateway and token_file, and little else"}
	}
	text := strings.TrimPrefix(string(data), byteOrderMark)
	var file enrolmentFile
	meta, err := toml.Decode(text, &file)
	if err != nil {
		wrong := &KeyError{File: path, What: "cannot be read", Do: `write it as in: gateway = "https://devops.example.com"`}
		var parse toml.ParseError // its text may have the token in it
		if errors.As(err, &parse) {
			wrong.Line = parse.Position.Line
		} else if key, have, want, ok := wrongType(err.Error()); ok {
			wrong.Line, wrong.Key, wrong.What, wrong.Do = lineOf(text, key), key, "is of the wrong type: "+have+" instead of "+want, "write it in quotes"
		}
		return nil, wrong
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		key := unknown[0].String()
		return nil, &KeyError{File: path, Line: lineOf(text, key), Key: key, What: "is not a setting of such a file",
			Do: "it has gateway, token_file or token, zone, project and pin"}
	}
	r := tomlReader{path: path, text: text, meta: meta}
	e := &Enrolment{
		Gateway:   or(own.Gateway, r.gateway("gateway", file.Gateway)),
		TokenFile: r.line("token_file", file.TokenFile),
		Token:     wire.Secret(r.line("token", file.Token)),
		Zone:      or(own.Zone, r.line("zone", file.Zone)),
		Project:   r.line("project", file.Project),
		Pin:       own.Pin,
		From:      path,
	}
	if pin := r.pin("pin", file.Pin); e.Pin.IsZero() {
		e.Pin = pin
	}
	switch {
	case r.err != nil:
	case e.Gateway == "":
		r.wrong("gateway", "is missing", "write the address of the server")
	case e.TokenFile == "" && e.Token == "":
		r.wrong("token_file", "is missing", "write the name of the file with the install token, or the token itself as token")
	case e.TokenFile != "" && e.Token != "":
		r.wrong("token", "is given beside token_file", "remove one of the two")
	case e.Token != "" && readableByAll(info):
		r.wrong("token", "stands in a file that every user of this machine can read", "take that right away: chmod o= "+path)
	}
	if r.err != nil {
		return nil, r.err
	}
	if e.TokenFile != "" && !filepath.IsAbs(e.TokenFile) {
		e.TokenFile = filepath.Join(filepath.Dir(path), e.TokenFile)
	}
	return e, nil
}

// pin reads a fingerprint; the zero value when there is none.
func (r *tomlReader) pin(key, text string) wire.Pin {
	if strings.TrimSpace(text) == "" {
		return wire.Pin{}
	}
	pin, err := wire.ParsePin(text)
	if err != nil {
		r.wrong(key, "is not the SHA-256 fingerprint of a certificate", pinHelp)
	}
	return pin
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
