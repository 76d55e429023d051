package controller

import (
	"fmt"
	"sync"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// BenchmarkLogLines: lines acknowledged per second, on disk, from four workers that post 1,000 lines at a time.
func BenchmarkLogLines(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir(), MaxLogLines: 1 << 40})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	lines := make([]Line, 1000)
	for i := range lines {
		lines[i] = Line{At: int64(i), Tag: "e-00112233445566778899aabbccddeeff", Type: wire.LogNormal,
			Message: fmt.Sprintf("%d: a line of a usual length, as a compiler or a test prints it", i)}
	}
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for range (b.N + 3) / 4 {
				if err := s.store.appendLog(int64(w), 0, append([]Line(nil), lines...)).wait(); err != nil {
					b.Error(err)
				}
			}
		})
	}
	workers.Wait()
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "lines/s")
}

// BenchmarkHandOut: from Submit to the claimed job, both on disk.
func BenchmarkHandOut(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	w := &world{server: s, http: httpOf(s), url: "http://controller"}
	id, err := s.CreateAgent(NewAgent{})
	if err != nil {
		b.Fatal(err)
	}
	client := &wire.Client{Gateway: w.url, Identity: id, HTTP: w.http}
	if _, err := client.Startup(b.Context(), wire.Startup{HostName: "h", HostIP: "1.1.1.1", DetectOS: "linux"}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		build, err := s.Submit("", oneStep("x"))
		if err != nil {
			b.Fatal(err)
		}
		if got, _, err := client.Claim(b.Context(), wire.All, 0); err != nil || got == nil || got.ID != build.ID {
			b.Fatal(got, err)
		}
	}
}
