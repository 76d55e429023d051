package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/devops-agent/devops-agent/service"
)

// maxCaptured bounds .env and .path.
const maxCaptured = 1 << 20

// loadCaptured takes over the environment that an installer of the ask generation captured (protocol §2.1, §3.3):
// .env holds KEY=value lines, .path the PATH. A service starts with hardly any environment, and builds expect more.
// What is set already stays, except PATH. A file that others can write is not believed.
func loadCaptured(inst *service.Installation, log *slog.Logger) {
	text, err := readCaptured(inst.Path(".env"))
	if err != nil {
		log.Warn("Captured environment not loaded", "err", err)
	}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), "=")
		name = strings.TrimSpace(name)
		if _, set := os.LookupEnv(name); !ok || set || name == "" || strings.HasPrefix(name, "#") || name == "PATH" {
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			log.Warn("Captured variable not set", "name", name, "err", err)
		}
	}
	path, err := readCaptured(inst.Path(".path"))
	if err != nil {
		log.Warn("Captured PATH not loaded", "err", err)
	}
	if path = strings.TrimSpace(path); path != "" {
		if err := os.Setenv("PATH", path); err != nil {
			log.Warn("Captured PATH not set", "err", err)
		}
	}
}

func readCaptured(path string) (string, error) {
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxCaptured {
		return "", fmt.Errorf("%s is no file of less than %d bytes", path, maxCaptured)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return "", fmt.Errorf("%s can be written by everyone; chmod o-w it", path)
	}
	data, err := os.ReadFile(path)
	return string(data), err
}
