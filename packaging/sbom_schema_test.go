package packaging

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// cycloneDX is the official schema of what WriteSBOM writes.
func cycloneDX(t *testing.T) *jsonschema.Schema {
	t.Helper()
	const base = "http://cyclonedx.org/schema/"
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	for _, name := range []string{"bom-1.5.schema.json", "spdx.schema.json", "jsf-0.82.schema.json"} {
		data, err := os.ReadFile(filepath.Join("testdata", "cyclonedx", name))
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := compiler.AddResource(base+name, doc); err != nil {
			t.Fatal(err)
		}
	}
	schema, err := compiler.Compile(base + "bom-1.5.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// TestSBOMIsCycloneDX: with every licence that we tell apart, and with a module that has none.
func TestSBOMIsCycloneDX(t *testing.T) {
	schema := cycloneDX(t)
	valid := func(text []byte) error {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			return err
		}
		return schema.Validate(doc)
	}
	program, deps := linkedProgram(t)
	write := func(licences ...Licence) []byte {
		t.Helper()
		r := Release{Version: "v1.2.3-dev.4", Commit: "abc", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Licences: licences}
		var out bytes.Buffer
		if err := WriteSBOM(&out, r, Manifest{Files: []File{{Path: "/x", Source: program, Program: true}}}); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	text := write()
	for _, id := range []string{"", "Apache-2.0", "MPL-2.0", "BSD-3-Clause", "BSD-2-Clause", "ISC", "MIT", "LicenseRef-other"} {
		of := write(Licence{Module: deps[0][0], Version: deps[0][1], SPDX: id})
		if err := valid(of); err != nil {
			t.Errorf("%q: %v\n%s", id, err, of)
		}
	}
	if err := valid(write(Licence{Module: deps[0][0], Version: deps[0][1], SPDX: "BSD-3"})); err == nil {
		t.Error("a licence that SPDX does not know was taken")
	}
	for _, change := range [][2]string{
		{`"specVersion": "1.5"`, `"specVersion": 1.5`}, {`"2026-01-02T03:04:05Z"`, `"yesterday"`}, {`"urn:uuid:`, `"urn:`},
		{`"SHA-256"`, `"sha256"`}, {`"type": "library"`, `"type": "module"`}, {`"bomFormat"`, `"format"`},
	} {
		broken := bytes.ReplaceAll(text, []byte(change[0]), []byte(change[1]))
		if bytes.Equal(broken, text) {
			t.Errorf("there is no %s", change[0])
		} else if err := valid(broken); err == nil {
			t.Errorf("%s was taken", change[1])
		}
	}
}
