package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"
)

// page is the Markdown of a run. Drawings are in a folder beside it.
func page(o options, about []string, results []*result) string {
	var b strings.Builder
	b.WriteString("# A simulated fleet\n\nWritten by `make bench-fleet`; do not edit. One controller and a simulator on one machine share its cores: what the agents cost is in the\n" +
		"figures. Agents have the client and the pacing of the real one, a connection each, and no processes. The simulator collects its\n" +
		"garbage before a measurement, and not during one. Agents start evenly over whole rounds of\n" +
		"30 s, as machines do that have nothing to do with each other. Held answers count without the time for which the agent asked them to be held.\n" +
		"What is wanted is that of design §12, for 10,000 agents and in proportion for others; builds, memory and p99 as they are. What else the machine\n" +
		"did meanwhile is said with each profile.\n\n| | |\n|---|---|\n")
	for _, line := range about {
		b.WriteString(line + "\n")
	}
	fmt.Fprintf(&b, "| agents | %d |\n| seed | %d |\n\n| profile | what | wanted | measured | met |\n|---|---|---|---|---|\n", o.agents, o.seed)
	for _, r := range results {
		for i, row := range r.rows {
			title := ""
			if i == 0 {
				title = r.title
			}
			met := "yes"
			switch {
			case row.wanted == "–":
				met = "–"
			case !row.met:
				met = "**no**"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", title, row.what, row.wanted, cell(row.measured), met)
		}
	}
	for _, r := range results {
		fmt.Fprintf(&b, "\n## %s\n\n", r.title)
		if r.note != "" {
			b.WriteString(r.note + "\n\n")
		}
		if r.waiting > 0 {
			fmt.Fprintf(&b, "Calls that the profile cut off itself: %d.\n\n", r.waiting)
		}
		b.WriteString("| call | answers | held | failed | p50 | p90 | p99 | max |\n|---|---|---|---|---|---|---|---|\n")
		for _, f := range r.tally.figures() {
			fmt.Fprintf(&b, "| %s | %d | %d | %d | %s | %s | %s | %s |\n", f.name, f.count-f.failed, f.held, f.failed, short(f.p50), short(f.p90), short(f.p99), short(f.max))
		}
		for _, text := range r.faults {
			fmt.Fprintf(&b, "\n- %s", cell(text))
		}
		fmt.Fprintf(&b, "\n![%s](fleetsim/%s.svg)\n", r.title, r.name)
	}
	return b.String()
}

func cell(text string) string { return strings.ReplaceAll(text, "|", "\\|") }

// write puts the page and its drawings into a folder.
func write(o options, about []string, results []*result) error {
	if err := os.MkdirAll(filepath.Join(o.out, "fleetsim"), 0o755); err != nil {
		return err
	}
	for _, r := range results {
		if err := os.WriteFile(filepath.Join(o.out, "fleetsim", r.name+".svg"), []byte(drawing(r.title, r.panels())), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(o.out, "fleetsim.md"), []byte(page(o, about, results)), 0o644)
}

// about describes program and machine.
func about(ctx context.Context, program string, loadBefore string) []string {
	version, err := exec.CommandContext(ctx, program, "version").Output()
	if err != nil {
		version = []byte("unknown")
	}
	lines := []string{
		"| controller | " + cell(strings.TrimSpace(string(version))) + " |",
		"| Go | " + runtime.Version() + " |",
		"| date | " + time.Now().UTC().Format("2006-01-02 15:04") + " UTC |",
	}
	if cores, err := cpu.InfoWithContext(ctx); err == nil && len(cores) > 0 {
		lines = append(lines, fmt.Sprintf("| cores | %d × %s |", runtime.NumCPU(), cell(cores[0].ModelName)))
	}
	if memory, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		lines = append(lines, fmt.Sprintf("| memory | %d GiB |", memory.Total>>30))
	}
	if info, err := host.InfoWithContext(ctx); err == nil {
		lines = append(lines, "| kernel | "+cell(info.KernelVersion)+" |")
	}
	return append(lines, "| load before | "+loadBefore+" |")
}

// loadNow is the machine's load over 1, 5 and 15 minutes.
func loadNow(ctx context.Context) string {
	avg, err := load.AvgWithContext(ctx)
	if err != nil {
		return "unknown"
	}
	return fmt.Sprintf("%.2f %.2f %.2f", avg.Load1, avg.Load5, avg.Load15)
}
