package controller

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The examples of docs/controller.md with several jobs, and with a schedule and a webhook, work as they are.
func TestTheExamplesOfRunsAreTrue(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "docs", "controller.md"))
	if err != nil {
		t.Fatal(err)
	}
	jobs, defined := 0, 0
	for _, part := range strings.Split(string(data), "```yaml\n")[1:] {
		example, _, _ := strings.Cut(part, "```")
		if HasJobs([]byte(example)) {
			f, err := ParseJobs([]byte(example))
			if err != nil {
				t.Fatal(err)
			}
			if cells, err := f.cells(); err != nil || len(cells) != 6 {
				t.Errorf("%d builds: %v", len(cells), err)
			}
			jobs++
		}
		if strings.Contains(example, "webhook:") {
			d, err := serve(t, Options{}).server.Define("", example)
			if err != nil || len(d.Schedules) != 1 || d.Webhook == nil || d.Badge != "public" {
				t.Errorf("%+v %v", d, err)
			}
			defined++
		}
	}
	if jobs != 1 || defined != 1 {
		t.Errorf("%d examples with jobs, %d of definitions", jobs, defined)
	}
}
