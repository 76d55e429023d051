package controller

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const twoJobs = `name: nightly
labels: [linux]
variables: {MODE: release, LEVEL: "1"}
timeout: 1h
jobs:
  build:
    variables: {LEVEL: "2"}
    steps:
      - id: make
        script: echo "::set-output name=count::42"
  test:
    needs: build
    matrix: {os: [linux, macos], go: [1.10, "1.26"]}
    labels: ["os=${{ matrix.os }}"]
    steps:
      - name: with ${{ matrix.go }}
        script: echo ${{ jobs.build.steps.make.outputs.count }} ${{ matrix.go }}
  tell:
    needs: [build, test]
    always: true
    timeout: 5m
    steps: [{script: echo over}]
`

func TestAFileWithJobsBecomesBuilds(t *testing.T) {
	f, err := ParseJobs([]byte(twoJobs))
	if err != nil {
		t.Fatal(err)
	}
	cells, err := f.cells()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range cells {
		names = append(names, c.spec.Name)
	}
	want := []string{"nightly/build", "nightly/test (linux, 1.10)", "nightly/test (linux, 1.26)", "nightly/test (macos, 1.10)", "nightly/test (macos, 1.26)", "nightly/tell"}
	if !slices.Equal(names, want) {
		t.Fatalf("builds %q, want %q", names, want)
	}
	if c := cells[0]; c.spec.Variables["LEVEL"].Value != "2" || c.spec.Variables["MODE"].Value != "release" || c.spec.Timeout != f.Timeout || len(c.needs) != 0 {
		t.Errorf("build: %+v", c)
	}
	if c := cells[3]; !slices.Equal(c.spec.Labels, []string{"linux", "os=macos"}) || c.spec.Variables["matrix.go"].Value != "1.10" ||
		c.spec.Variables["LEVEL"].Value != "1" || c.spec.Steps[0].Name != "with 1.10" || !slices.Equal(c.needs, []string{"build"}) {
		t.Errorf("test (macos, 1.10): %+v", c)
	}
	if c := cells[5]; !c.always || c.spec.Timeout == f.Timeout {
		t.Errorf("tell: %+v", c)
	}
}

func TestAFileWithJobsThatCannotBe(t *testing.T) {
	step := "    steps: [{script: x}]\n"
	long := make([]string, 20)
	for i := range long {
		long[i] = fmt.Sprint(i)
	}
	axis := "[" + strings.Join(long, ", ") + "]"
	for _, c := range []struct{ name, file, want string }{
		{"a circle", "jobs:\n  a:\n    needs: c\n" + step + "  b:\n    needs: [a]\n" + step + "  c:\n    needs:\n      - b\n" + step,
			"line 6: jobs wait for each other: a needs c needs b needs a"},
		{"itself", "jobs:\n  a:\n    needs: a\n" + step, "line 3: jobs wait for each other: a needs a"},
		{"unknown need", "jobs:\n  a:\n" + step + "  b:\n    needs: [a, nope]\n" + step, `line 5: job b needs "nope", which is no job`},
		{"the same job twice", "jobs:\n  a:\n" + step + "  a:\n" + step, `line 4: mapping key "a" already defined at line 2`},
		{"the same axis twice", "jobs:\n  a:\n    matrix:\n      x: [1]\n      x: [2]\n" + step, "line 5"},
		{"the same value twice", "jobs:\n  a:\n    matrix:\n      x: [1, 2, 1]\n" + step, `line 4: matrix: x has "1" twice`},
		{"a matrix too large", "jobs:\n  a:\n    matrix: {x: " + axis + ", y: " + axis + "}\n" + step, "line 2: job a: more than 256 builds"},
		{"too many in all", "jobs:\n  a:\n    matrix: {x: " + axis + ", y: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}\n" + step + "  b:\n    matrix: {x: " + axis + ", y: [1, 2, 3, 4, 5]}\n" + step,
			"line 5: job b: more than 256 builds"},
		{"an empty axis", "jobs:\n  a:\n    matrix: {x: []}\n" + step, "line 3: matrix: x must be a list"},
		{"a matrix in a matrix", "jobs:\n  a:\n    matrix: {x: [[1]]}\n" + step, "line 3: matrix: x: a value must be"},
		{"an unknown key of a job", "jobs:\n  a:\n    need: b\n" + step, `line 3: unknown key "need"`},
		{"an unknown key of a step", "jobs:\n  a:\n    steps:\n      - {script: x, shel: sh}\n", `line 4: unknown key "shel"`},
		{"steps beside jobs", "steps: [{script: x}]\njobs:\n  a:\n" + step, `line 1: unknown key "steps"`},
		{"a job without steps", "jobs:\n  a:\n" + step + "  b:\n    needs: a\n", "line 4: job b: no steps"},
		{"an empty job", "jobs:\n  a:\n", "line 2: job a: no steps"},
		{"a name that is none", "jobs:\n  a b:\n" + step, `line 2: job "a b"`},
		{"an axis that is not there", "jobs:\n  a:\n    matrix: {x: [1]}\n    labels: [\"${{ matrix.y }}\"]\n" + step, "line 2: job a: label"},
		{"outputs of a job that is not needed", "jobs:\n  a:\n" + step + "  b:\n    steps: [{script: \"echo ${{ jobs.a.steps.x.outputs.y }}\"}]\n", "line 4: job b: step 1: it uses jobs.a, which is not in needs"},
		{"no jobs", "jobs: {}\n", "no jobs"},
		{"not a mapping", "jobs: [a]\n", "line 1"},
		{"two documents", "jobs:\n  a:\n" + step + "---\nx: 1\n", "more than one document"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseJobs([]byte(c.file))
			var bad *SpecError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
			if !HasJobs([]byte(c.file)) && c.name != "two documents" && !strings.Contains(c.want, "already") {
				t.Error("not seen as a file with jobs")
			}
		})
	}
}

func TestAFileWithOneJobIsNone(t *testing.T) {
	for _, file := range []string{"", "steps: [{script: x}]\n", "name: jobs\nsteps: [{script: 'jobs: x'}]\n", "[jobs]", "\x00", "a: ["} {
		if HasJobs([]byte(file)) {
			t.Errorf("%q has jobs", file)
		}
	}
}

func FuzzParseJobs(f *testing.F) {
	f.Add([]byte(twoJobs))
	f.Add([]byte("jobs:\n  a: &x\n    needs: b\n    steps: [{script: x}]\n  b: *x\n"))
	f.Add([]byte("jobs:\n  <<: {a: {steps: [{script: x}]}}\n"))
	f.Add([]byte("jobs: &j {a: {matrix: {x: [1, ~]}, steps: []}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := ParseJobs(data)
		if err != nil {
			return
		}
		cells, err := file.cells()
		if err != nil || len(cells) == 0 || len(cells) > maxCells {
			t.Fatalf("%d builds of a file that was accepted: %v", len(cells), err)
		}
		seen := make(map[string]bool)
		for _, c := range cells {
			if err := c.spec.check(); err != nil {
				t.Fatalf("%s: %v", c.spec.Name, err)
			}
			if key := c.job + jsonText(c.matrix); seen[key] {
				t.Fatalf("%s twice", key)
			} else {
				seen[key] = true
			}
		}
	})
}
