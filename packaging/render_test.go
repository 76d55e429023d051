package packaging

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

var updateRendered = flag.Bool("update-rendered", false, "write the golden files of rendered manifests")

func TestRendered(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	texts, err := Winget("v1.2.3", time.Date(2026, 1, 31, 23, 0, 0, 0, time.UTC), []Published{
		{URL: "https://packages.example.org/v1.2.3/devops-agent-1.2.3-x64.msi", SHA256: sum, GOARCH: "amd64"},
		{URL: "https://packages.example.org/v1.2.3/devops-agent-1.2.3-arm64.msi", SHA256: sum, GOARCH: "arm64"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range texts {
		var any map[string]any
		if err := yaml.Unmarshal([]byte(text), &any); err != nil || any["PackageVersion"] != "1.2.3" {
			t.Errorf("%s: %v, %v", name, any, err)
		}
	}
	cask, err := Cask("v1.2.3", Published{URL: "https://packages.example.org/v1.2.3/devops-agent-1.2.3.pkg", SHA256: sum})
	if err != nil {
		t.Fatal(err)
	}
	texts["devops-agent.rb"] = cask
	for name, text := range texts {
		path := filepath.Join("testdata", "render", name)
		if *updateRendered {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || string(want) != text {
			t.Errorf("%s differs from its golden file (%v):\n%s", name, err, text)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	good := Published{URL: "https://example.org/a.msi", SHA256: strings.Repeat("0a", 32), GOARCH: "amd64"}
	for what, change := range map[string]func(*Published){
		"a path for an address":   func(p *Published) { p.URL = "/a.msi" },
		"a quote in an address":   func(p *Published) { p.URL = "https://example.org/a'.msi" },
		"a line in an address":    func(p *Published) { p.URL = "https://example.org/a\nb.msi" },
		"Ruby in an address":      func(p *Published) { p.URL = "https://example.org/#{system('x')}.msi" },
		"half a digest":           func(p *Published) { p.SHA256 = "0a" },
		"something like a digest": func(p *Published) { p.SHA256 = strings.Repeat("0x", 32) },
		"another processor":       func(p *Published) { p.GOARCH = "riscv64" },
	} {
		p := good
		change(&p)
		if _, err := Winget("v1.2.3", time.Now(), []Published{p}); err == nil {
			t.Errorf("winget takes %s", what)
		}
		if _, err := Cask("v1.2.3", p); err == nil && p.GOARCH == "amd64" {
			t.Errorf("a cask takes %s", what)
		}
	}
	if _, err := Winget("v1.2.3", time.Now(), nil); err == nil {
		t.Error("winget without a package")
	}
	if _, err := Winget("latest", time.Now(), []Published{good}); err == nil {
		t.Error("a version that is none")
	}
}
