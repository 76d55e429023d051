//go:build linux

package e2e

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// page is docs/benchmarks.md in the making.
type page struct {
	machine [][2]string
	rows    []row
}

// row is one figure: what it is, what the original agents need, what we want, what was measured, and how.
type row struct {
	what, original, wanted, measured string
	met                              string // yes or no, "" where nothing is wanted
	how                              string
}

// metric is one figure for the output of go test.
type metric struct {
	value float64
	unit  string
}

func says(met bool) string {
	if met {
		return "yes"
	}
	return "**no**"
}

// add notes a row, and shows its figures as those of a benchmark.
func (p *page) add(b *testing.B, r row, figures ...metric) {
	b.ReportMetric(0, "ns/op") // of one round, which says nothing
	for _, f := range figures {
		b.ReportMetric(f.value, f.unit)
	}
	for i := range p.rows {
		if p.rows[i].what == r.what { // measured again
			p.rows[i] = r
			return
		}
	}
	p.rows = append(p.rows, r)
}

// describeMachine says what was measured and where.
func describeMachine(program string) ([][2]string, error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("look into %s: %w", program, err)
	}
	version, err := exec.Command(program, "version", "--full").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", program, err)
	}
	find := func(file, name string) string {
		data, err := os.ReadFile(file)
		if err != nil {
			return "unknown"
		}
		for line := range strings.Lines(string(data)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
				return strings.TrimSpace(value)
			}
		}
		return "unknown"
	}
	first := func(file string, fields int) string {
		data, err := os.ReadFile(file)
		if err != nil {
			return "unknown"
		}
		words := strings.Fields(string(data))
		return strings.Join(words[:min(fields, len(words))], " ")
	}
	memory := find("/proc/meminfo", "MemTotal")
	var kb int64
	if n, _ := fmt.Sscanf(memory, "%d kB", &kb); n == 1 {
		memory = fmt.Sprintf("%.0f GiB", float64(kb)/(1<<20))
	}
	return [][2]string{
		{"programs", strings.Join(strings.Fields(string(version)), " ")},
		{"Go", info.GoVersion},
		{"date", time.Now().UTC().Format("2006-01-02 15:04 UTC")},
		{"cores", fmt.Sprintf("%d × %s", runtime.NumCPU(), find("/proc/cpuinfo", "model name"))},
		{"memory", memory},
		{"kernel", first("/proc/sys/kernel/osrelease", 1) + " " + runtime.GOARCH},
		{"load before", first("/proc/loadavg", 3)},
	}, nil
}

// write writes the page, whole or not at all.
func (p *page) write(path string) error {
	var b strings.Builder
	b.WriteString("# Benchmarks\n\n" +
		"Written by `make bench`; do not edit. The figures of the original agents are those of its two generations, measured on\n" +
		"a 2-core machine over loopback, as here. Times are medians with the least and the greatest in brackets.\n\n" +
		"| | |\n|---|---|\n")
	for _, line := range p.machine {
		fmt.Fprintf(&b, "| %s | %s |\n", line[0], line[1])
	}
	b.WriteString("\n| what | original | wanted | measured | met | how |\n|---|---|---|---|---|---|\n")
	for _, r := range p.rows {
		met := r.met
		if met == "" {
			met = "–"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.what, r.original, r.wanted, r.measured, met, r.how)
	}
	fresh := path + ".new"
	if err := os.WriteFile(fresh, []byte(b.String()), 0o644); err != nil { //nolint:gosec // a page of the documentation
		return err
	}
	return os.Rename(fresh, path)
}

// times are measured durations.
type times []time.Duration

// at returns the value below which a part of them lies; 0 is the least, 1 the greatest.
func (t times) at(part float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(t))
	return sorted[int(part*float64(len(sorted)-1)+0.5)]
}

func (t times) best() time.Duration   { return t.at(0) }
func (t times) median() time.Duration { return t.at(0.5) }
func (t times) worst() time.Duration  { return t.at(1) }

// String is the cell of a table.
func (t times) String() string {
	text := fmt.Sprintf("%s (%s–%s", short(t.median()), short(t.best()), short(t.worst()))
	if len(t) >= 40 {
		text += ", p95 " + short(t.at(0.95))
	}
	return text + ")"
}

func (t times) metric(name string) metric {
	return metric{t.median().Seconds() * 1000, name + "-ms"}
}

// short writes a duration with the digits that matter.
func short(d time.Duration) string {
	switch ms := d.Seconds() * 1000; {
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
