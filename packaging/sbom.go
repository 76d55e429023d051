package packaging

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// SBOMName is the file name of the bill of materials of a release.
func SBOMName(r Release) (string, error) {
	v, err := parseVersion(r.Version)
	return "devops-agent-" + v.String() + ".cdx.json", err
}

// A bill of materials, as CycloneDX 1.5 has it in JSON; the fields that are of use here.
type sbom struct {
	Schema       string          `json:"$schema"`
	BOMFormat    string          `json:"bomFormat"`
	SpecVersion  string          `json:"specVersion"`
	SerialNumber string          `json:"serialNumber,omitempty"`
	Version      int             `json:"version"`
	Metadata     sbomMetadata    `json:"metadata"`
	Components   []sbomComponent `json:"components"`
	Dependencies []sbomDependsOn `json:"dependencies"`
}

type sbomMetadata struct {
	Timestamp string        `json:"timestamp"`
	Component sbomComponent `json:"component"`
}

type sbomComponent struct {
	Type       string         `json:"type"`
	Ref        string         `json:"bom-ref"`
	Name       string         `json:"name"`
	Version    string         `json:"version,omitempty"`
	Hashes     []sbomHash     `json:"hashes,omitempty"`
	Licenses   []sbomLicense  `json:"licenses,omitempty"`
	PURL       string         `json:"purl,omitempty"`
	Properties []sbomProperty `json:"properties,omitempty"`
}

type sbomHash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type sbomLicense struct {
	License sbomLicenseName `json:"license"`
}

type sbomLicenseName struct {
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
}

type sbomProperty struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type sbomDependsOn struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

// WriteSBOM writes what the programs of packages are made of, as CycloneDX 1.5 in JSON: every program with its sum, and the
// modules and the Go release that its build information names ("go version -m"). The same release gives the same bytes.
func WriteSBOM(w io.Writer, r Release, manifests ...Manifest) error {
	v, err := parseVersion(r.Version)
	if err != nil {
		return err
	}
	product := sbomComponent{Type: "application", Ref: "devops-agent", Name: "devops-agent", Version: v.String(), Licenses: sbomLicenses(licence),
		Properties: []sbomProperty{{"commit", r.Commit}}}
	bom := sbom{Schema: "http://cyclonedx.org/schema/bom-1.5.schema.json", BOMFormat: "CycloneDX", SpecVersion: "1.5", Version: 1,
		Metadata: sbomMetadata{Timestamp: r.Time.UTC().Format(time.RFC3339), Component: product}}
	spdx := map[string]string{}
	for _, l := range r.Licences {
		spdx[l.Module+"@"+l.Version] = l.SPDX
	}
	libraries := map[string]sbomComponent{}
	programs := sbomPrograms(manifests)
	all := sbomDependsOn{Ref: product.Ref, DependsOn: []string{}}
	for _, path := range programs {
		program, modules, err := describeProgram(path, v.String())
		if err != nil {
			return fmt.Errorf("describe %s: %w", path, err)
		}
		bom.Components = append(bom.Components, program)
		all.DependsOn = append(all.DependsOn, program.Ref)
		needs := sbomDependsOn{Ref: program.Ref, DependsOn: []string{}}
		for _, m := range modules {
			one := sbomLibrary(m, spdx)
			libraries[one.Ref] = one
			needs.DependsOn = append(needs.DependsOn, one.Ref)
		}
		slices.Sort(needs.DependsOn)
		bom.Dependencies = append(bom.Dependencies, needs)
	}
	bom.Dependencies = slices.Insert(bom.Dependencies, 0, all)
	for _, ref := range slices.Sorted(maps.Keys(libraries)) {
		bom.Components = append(bom.Components, libraries[ref])
	}
	text, err := json.Marshal(bom)
	if err != nil {
		return err
	}
	bom.SerialNumber = "urn:uuid:" + uuidOf(text)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(bom)
}

// sbomPrograms are the files of the programs in packages, each once, by name.
func sbomPrograms(manifests []Manifest) []string {
	seen := map[string]bool{}
	for _, m := range manifests {
		for _, f := range m.Files {
			for _, path := range append(f.Parts, f.Source) {
				if f.Program && path != "" {
					seen[path] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// describeProgram reads a program's sum and build information. The first of the modules is Go's own.
func describeProgram(path, version string) (sbomComponent, []debug.Module, error) {
	f, err := os.Open(path)
	if err != nil {
		return sbomComponent{}, nil, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sbomComponent{}, nil, err
	}
	info, err := buildinfo.Read(f)
	if err != nil {
		return sbomComponent{}, nil, err
	}
	name := filepath.Base(path)
	c := sbomComponent{Type: "application", Ref: "program:" + name, Name: name, Version: version,
		Hashes: []sbomHash{{"SHA-256", hex.EncodeToString(h.Sum(nil))}}, Licenses: sbomLicenses(licence)}
	for _, s := range info.Settings {
		if s.Key == "GOOS" || s.Key == "GOARCH" {
			c.Properties = append(c.Properties, sbomProperty{s.Key, s.Value})
		}
	}
	modules := []debug.Module{{Path: "std", Version: info.GoVersion}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		modules = append(modules, *m)
	}
	return c, modules, nil
}

// sbomLibrary is a module. Its package URL is that of package-url's "golang" type.
func sbomLibrary(m debug.Module, spdx map[string]string) sbomComponent {
	version := m.Version
	if m.Path == "std" {
		version = strings.TrimPrefix(version, "go")
	}
	purl := "pkg:golang/" + m.Path + "@" + strings.ReplaceAll(version, "+", "%2B")
	c := sbomComponent{Type: "library", Ref: purl, Name: m.Path, Version: version, PURL: purl, Licenses: sbomLicenses(spdx[m.Path+"@"+m.Version])}
	if m.Sum != "" {
		c.Properties = []sbomProperty{{"go:sum", m.Sum}}
	}
	return c
}

func sbomLicenses(id string) []sbomLicense {
	switch {
	case id == "":
		return nil
	case strings.HasPrefix(id, "LicenseRef-"):
		return []sbomLicense{{sbomLicenseName{Name: strings.TrimPrefix(id, "LicenseRef-")}}}
	}
	return []sbomLicense{{sbomLicenseName{ID: id}}}
}

// uuidOf is the UUID (version 8, RFC 9562) that stands for a text.
func uuidOf(text []byte) string {
	sum := sha256.Sum256(text)
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}
