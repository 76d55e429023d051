package worker

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// maxSettings bounds .agent.properties and .cert.
const maxSettings = 1 << 20

// Settings are what a worker needs of the agent's .agent.properties (protocol §2.2).
type Settings struct {
	Identity wire.Identity
	Gateway  string // landun.gateway
	Env      string // landun.env
}

// ReadSettings reads .agent.properties in dir. A missing key is an error that names it.
func ReadSettings(dir string) (Settings, error) {
	path := filepath.Join(dir, ".agent.properties")
	raw, err := readBounded(path)
	if err != nil {
		return Settings{}, fmt.Errorf("read settings: %w", err)
	}
	values := parseProperties(string(raw))
	s := Settings{
		Identity: wire.Identity{
			Project: values["devops.project.id"],
			Agent:   values["devops.agent.id"],
			Secret:  wire.Secret(values["devops.agent.secret.key"]),
		},
		Gateway: values["landun.gateway"],
		Env:     values["landun.env"],
	}
	for _, key := range []string{"devops.project.id", "devops.agent.id", "devops.agent.secret.key", "landun.gateway"} {
		if values[key] == "" {
			return Settings{}, fmt.Errorf("%s: %s is missing", path, key)
		}
	}
	if err := wire.CheckGateway(s.Gateway); err != nil {
		return Settings{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// parseProperties reads "key=value" lines as both an INI reader and a Java properties reader would: "=" or else ":"
// separates, blanks around both are cut, "#", "!" and ";" begin comments, the last of equal keys counts.
// A backslash before "=" or ":" is what Java writes there.
func parseProperties(text string) map[string]string {
	values := map[string]string{}
	text = strings.TrimPrefix(text, "\ufeff")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.ContainsRune("#!;[", rune(line[0])) {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			if key, value, ok = strings.Cut(line, ":"); !ok {
				continue
			}
		}
		value = strings.NewReplacer(`\=`, `=`, `\:`, `:`).Replace(strings.TrimSpace(value))
		values[strings.TrimSpace(key)] = value
	}
	return values
}

// Roots is the system's certificate pool with the file .cert of dir added (PEM), nil when there is no such file.
func Roots(dir string) (*x509.CertPool, error) {
	raw, err := readBounded(filepath.Join(dir, ".cert"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read .cert: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil || pool == nil {
		pool = x509.NewCertPool() // some Windows systems have none to give
	}
	if !pool.AppendCertsFromPEM(raw) {
		return nil, errors.New("read .cert: no PEM certificate in it")
	}
	return pool, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxSettings+1))
	if err == nil && len(raw) > maxSettings {
		err = fmt.Errorf("%s: longer than %d bytes", path, maxSettings)
	}
	return raw, err
}
