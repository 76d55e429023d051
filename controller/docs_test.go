package controller

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The examples of docs/controller.md with several jobs, and with a schedule and a webhook, work as they are.
func TestTheExamplesOfRunsAreTrue(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "docs", "controller.md"))
	if err != nil {
		t.Fatal(err)
	}
	var builds []int // of the examples with several jobs
	defined := 0
	for _, part := range strings.Split(string(data), "```yaml\n")[1:] {
		example, _, _ := strings.Cut(part, "```")
		if HasJobs([]byte(example)) {
			f, err := ParseJobs([]byte(example))
			if err != nil {
				t.Fatal(err)
			}
			cells, err := f.cells()
			if err != nil {
				t.Fatal(err)
			}
			builds = append(builds, len(cells))
		}
		if strings.Contains(example, "webhook:") {
			d, err := serve(t, Options{}).server.Define("", example)
			if err != nil || len(d.Schedules) != 1 || d.Webhook == nil || d.Badge != "public" {
				t.Errorf("%+v %v", d, err)
			}
			defined++
		}
	}
	if !slices.Equal(builds, []int{6, 3}) || defined != 1 {
		t.Errorf("examples with jobs have %d builds, %d of definitions", builds, defined)
	}
}
