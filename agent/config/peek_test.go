package config

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestPeekWritesNothing: not where a key is missing, not where the file is torn and its copy is used.
func TestPeekWritesNothing(t *testing.T) {
	const text = "devops.project.id=demo\ndevops.agent.id=agt-1\ndevops.agent.secret.key=hunter2hunter2\n" +
		"landun.gateway=http://ci.example\ndevops.parallel.task.count=4\nlandun.env=PROD\n"
	home := t.TempDir()
	if _, err := Peek(home, &Config{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty home: %v", err)
	}
	for _, files := range []map[string]string{
		{PropertiesFile: text},
		{PropertiesFile: "", BackupFile: text},
	} {
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(home, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Peek(home, &Config{Server: Server{Gateway: "http://other.example"}})
		if err != nil || got.Identity.Agent != "agt-1" || got.Gateway != "http://other.example" {
			t.Errorf("%v, %v", got, err)
		}
		for name, content := range files {
			if data, err := os.ReadFile(filepath.Join(home, name)); err != nil || string(data) != content {
				t.Errorf("%s is now %q, %v", name, data, err)
			}
		}
		entries, err := os.ReadDir(home)
		if err != nil || len(entries) != len(files) {
			t.Errorf("home holds %v, %v", entries, err)
		}
	}
}
