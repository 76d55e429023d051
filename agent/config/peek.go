package config

import (
	"log/slog"
	"path/filepath"
)

// Peek reads <home>/.agent.properties, or its good copy where the file is torn, the way Open does, and writes nothing:
// for whoever looks at an agent from outside. The errors are those of Open.
func Peek(home string, cfg *Config) (Settings, error) {
	home, err := filepath.Abs(home)
	if err != nil {
		return Settings{}, err
	}
	s := &Store{path: filepath.Join(home, PropertiesFile), home: home, cfg: cfg, log: slog.New(slog.DiscardHandler),
		refused: map[string]string{}, mirrored: map[string]bool{}}
	if err := s.load(); err != nil {
		return Settings{}, err
	}
	return s.effective(s.base), nil
}
