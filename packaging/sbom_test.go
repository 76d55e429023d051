package packaging

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// linkedProgram builds a program and returns its file with the modules, path and version, that "go version -m" finds in it.
func linkedProgram(t *testing.T) (path string, deps [][2]string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "devopsWorker_linux")
	build := exec.Command("go", "build", "-o", path, "../cmd/worker") // any program; those of tests do not name their modules
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	linked, err := exec.Command("go", "version", "-m", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range regexp.MustCompile(`\tdep\t(\S+)\t(\S+)`).FindAllStringSubmatch(string(linked), -1) {
		deps = append(deps, [2]string{dep[1], dep[2]})
	}
	if len(deps) < 2 {
		t.Fatalf("%s", linked)
	}
	return path, deps
}

func TestSBOM(t *testing.T) {
	self, deps := linkedProgram(t)
	m := Manifest{Files: []File{{Path: "/x", Source: self, Program: true}, {Path: "/y", Source: "/nowhere"}, {Path: "/z", Source: self, Program: true}}}
	r := Release{Version: "v1.2.3-dev.4", Commit: "abc", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Licences: []Licence{{Module: deps[0][0], Version: deps[0][1], SPDX: "BSD-3-Clause"}, {Module: deps[1][0], Version: deps[1][1], SPDX: "LicenseRef-other"}}}
	var one, two bytes.Buffer
	if err := errors.Join(WriteSBOM(&one, r, m), WriteSBOM(&two, r, m, m)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("twice the same is not the same")
	}
	var bom sbom
	if err := json.Unmarshal(one.Bytes(), &bom); err != nil {
		t.Fatal(err)
	}
	if bom.BOMFormat != "CycloneDX" || bom.Metadata.Timestamp != "2026-01-02T03:04:05Z" || bom.Metadata.Component.Version != "1.2.3-dev.4" {
		t.Errorf("%+v", bom.Metadata)
	}
	if !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(bom.SerialNumber) {
		t.Error(bom.SerialNumber)
	}
	refs := map[string]sbomComponent{bom.Metadata.Component.Ref: bom.Metadata.Component}
	for _, c := range bom.Components {
		if _, twice := refs[c.Ref]; twice {
			t.Errorf("%s is there twice", c.Ref)
		}
		refs[c.Ref] = c
	}
	for _, d := range bom.Dependencies {
		for _, ref := range append(d.DependsOn, d.Ref) {
			if _, ok := refs[ref]; !ok {
				t.Errorf("%s is no component", ref)
			}
		}
	}
	sum, err := sumFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if program := refs["program:"+filepath.Base(self)]; len(program.Hashes) != 1 || program.Hashes[0].Content != sum {
		t.Errorf("%+v", program)
	}
	if std := refs["pkg:golang/std@"+strings.TrimPrefix(runtime.Version(), "go")]; std.Name != "std" {
		t.Errorf("%+v", refs)
	}
	for i, dep := range deps {
		c := refs["pkg:golang/"+dep[0]+"@"+dep[1]]
		var want []sbomLicense
		switch i {
		case 0:
			want = []sbomLicense{{sbomLicenseName{ID: "BSD-3-Clause"}}}
		case 1:
			want = []sbomLicense{{sbomLicenseName{Name: "other"}}}
		}
		if c.PURL != c.Ref || c.Type != "library" || !slices.Equal(c.Licenses, want) {
			t.Errorf("%s: %+v", dep[0], c)
		}
	}
	if len(bom.Components) != 1+1+len(deps) {
		t.Errorf("%d components of %d modules", len(bom.Components), len(deps))
	}
	m.Files[0].Source = filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(m.Files[0].Source, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteSBOM(&one, r, m); err == nil {
		t.Error("a text was described as a program")
	}
	if name, err := SBOMName(r); name != "devops-agent-1.2.3-dev.4.cdx.json" || err != nil {
		t.Errorf("%s, %v", name, err)
	}
}

func TestSums(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"b.rpm", "a~1.deb", ".hidden", "a~1.deb.minisig", SumsName + ".minisig"} {
		write(name, name)
	}
	if err := os.Mkdir(filepath.Join(dir, "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	sums := func() string {
		var b bytes.Buffer
		if err := WriteSums(&b, dir); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	text := sums()
	if names := regexp.MustCompile(`  .*`).FindAllString(text, -1); !slices.Equal(names, []string{"  a~1.deb", "  b.rpm"}) || len(text) != 2*64+len("  a~1.deb\n  b.rpm\n") {
		t.Error(text)
	}
	write(SumsName, text)
	if sums() != text {
		t.Error("the list is in the list")
	}
	if good, err := CheckSums(dir); err != nil || len(good) != 2 {
		t.Errorf("%q, %v", good, err)
	}
	write("b.rpm", "other")
	write("new.pkg", "x")
	if err := os.Remove(filepath.Join(dir, "a~1.deb")); err != nil {
		t.Fatal(err)
	}
	good, err := CheckSums(dir)
	for _, want := range []string{"a~1.deb: listed, and not there", "b.rpm: its content is not", "new.pkg: there, and not listed"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if len(good) != 0 {
		t.Errorf("%q", good)
	}
	for _, text := range []string{"no sum", strings.Repeat("a", 64) + "  ../x\n", strings.Repeat("a", 64) + "  ..\n"} {
		write(SumsName, text)
		if _, err := CheckSums(dir); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}
