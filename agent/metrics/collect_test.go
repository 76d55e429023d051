package metrics

import (
	"context"
	"errors"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func names(list []Metric) map[string]int {
	count := map[string]int{}
	for _, m := range list {
		count[m.Name]++
	}
	return count
}

func TestCollectMeasuresThisHost(t *testing.T) {
	about := About{Project: "demo", Agent: "abc", HostName: "h", HostIP: "10.0.0.1"}
	c := NewCollector()
	first, err := c.Collect(t.Context(), at(), about)
	if err != nil {
		t.Fatal(err)
	}
	if names(first)["cpu"] != 0 {
		t.Error("usage without a difference")
	}
	var second []Metric
	deadline := time.Now().Add(10 * time.Second)
	for names(second)["cpu"] == 0 && time.Now().Before(deadline) { // until the kernel's clock has ticked
		if second, err = c.Collect(t.Context(), at(), about); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"cpu", "mem", "swap", "system"}
	if runtime.GOOS == "linux" {
		want = append(want, "disk", "net", "netstat", "kernel", "processes")
	}
	for _, name := range want {
		if names(second)[name] == 0 {
			t.Errorf("no %s in %v", name, names(second))
		}
	}
	for _, m := range second {
		if len(m.Fields) == 0 || !m.Time.Equal(at()) {
			t.Errorf("%+v", m)
		}
		for tag, val := range map[string]string{"projectId": "demo", "agentId": "abc", "hostName": "h", "hostIp": "10.0.0.1"} {
			if m.Tags[tag] != val {
				t.Errorf("%s: tag %s is %q", m.Name, tag, m.Tags[tag])
			}
		}
		for name, val := range m.Fields {
			f, ok := val.(float64)
			if !finite(val) || ok && strings.Contains(name, "percent") && (f < 0 || f > 100) {
				t.Errorf("%s.%s = %v", m.Name, name, val)
			}
			if _, ok := fieldValue(val); !ok {
				t.Errorf("%s.%s cannot be encoded: %T", m.Name, name, val)
			}
		}
	}
}

func TestUsageAddsUpToAHundred(t *testing.T) {
	from := cpu.TimesStat{User: 100, Guest: 10, System: 50, Idle: 800, Nice: 5, GuestNice: 1, Iowait: 3}
	to := cpu.TimesStat{User: 130, Guest: 20, System: 60, Idle: 850, Nice: 10, GuestNice: 3, Iowait: 8}
	fields := usage(from, to)
	sum := 0.0
	for _, val := range fields {
		sum += val.(float64)
	}
	if math.Abs(sum-100) > 1e-9 {
		t.Errorf("sum %v of %v", sum, fields)
	}
	if got := fields["usage_idle"].(float64); got != 50 {
		t.Errorf("idle %v", got)
	}
	if usage(to, from) != nil || usage(to, to) != nil {
		t.Error("usage of no time at all")
	}
}

func TestCollectStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if list, err := NewCollector().Collect(ctx, at(), About{}); !errors.Is(err, context.Canceled) || len(list) != 0 {
		t.Errorf("%d metrics, %v", len(list), err)
	}
}

func BenchmarkCollect(b *testing.B) {
	c := NewCollector()
	for b.Loop() {
		list, err := c.Collect(b.Context(), at(), About{Project: "p", Agent: "a"})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := JSON(Mapped(list)); err != nil {
			b.Fatal(err)
		}
	}
}
