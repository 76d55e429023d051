package controller

import (
	"encoding/json"
	"time"
)

// historyLength is how many minutes of an agent's past are kept. They are in memory: the past begins when the
// controller started.
const historyLength = 120

// maxSample bounds the measurements that are read for the history; longer ones are kept and not read.
const maxSample = 256 << 10

// unmeasured marks a share that is not known.
const unmeasured = 255

// pastMinute is what is known of an agent in one minute: 12 bytes.
type pastMinute struct {
	at     int32 // minutes since 1970
	calls  uint16
	builds uint16 // the most at once
	cpu    uint8  // percent, or unmeasured
	memory uint8  // percent, or unmeasured
}

// history is a ring of the last minutes in which an agent was heard of.
type history struct {
	ring []pastMinute
	next int // where the next one goes, once the ring is full
}

// now returns the entry of this minute.
func (h *history) now(at time.Time) *pastMinute {
	m := int32(at.Unix() / 60)
	if last := h.last(); last != nil && last.at >= m {
		return last
	}
	fresh := pastMinute{at: m, cpu: unmeasured, memory: unmeasured}
	if len(h.ring) < historyLength {
		h.ring = append(h.ring, fresh)
		return &h.ring[len(h.ring)-1]
	}
	entry := &h.ring[h.next]
	*entry = fresh
	h.next = (h.next + 1) % historyLength
	return entry
}

func (h *history) last() *pastMinute {
	if len(h.ring) == 0 {
		return nil
	}
	return &h.ring[(h.next+len(h.ring)-1)%len(h.ring)]
}

// call notes a sign of life.
func (h *history) call(at time.Time, builds int) {
	m := h.now(at)
	m.calls = min(m.calls, 1<<16-2) + 1
	m.builds = max(m.builds, uint16(min(builds, 1<<16-1)))
}

// measure notes measurements.
func (h *history) measure(at time.Time, cpu, memory uint8) {
	m := h.now(at)
	m.cpu, m.memory = cpu, memory
}

// Minute is one minute of an agent's past.
type Minute struct {
	At     int64 `json:"at"`               // its begin, milliseconds since 1970
	Calls  int   `json:"calls"`            // signs of life
	Builds int   `json:"builds"`           // the most that it had at once
	CPU    *int  `json:"cpu,omitempty"`    // percent
	Memory *int  `json:"memory,omitempty"` // percent
}

// view makes the ring's entry of an index.
func (h *history) view(i int) Minute {
	m := h.ring[(h.next+i)%len(h.ring)]
	view := Minute{At: int64(m.at) * 60_000, Calls: int(m.calls), Builds: int(m.builds)}
	if n := int(m.cpu); n != unmeasured {
		view.CPU = &n
	}
	if n := int(m.memory); n != unmeasured {
		view.Memory = &n
	}
	return view
}

// list is a copy, the oldest first.
func (h *history) list() []Minute {
	list := make([]Minute, 0, len(h.ring))
	for i := range h.ring {
		list = append(list, h.view(i))
	}
	return list
}

// recent is the last measurement of the last five minutes, nil when there is none.
func (h *history) recent(at time.Time) (cpu, memory *int) {
	for i := len(h.ring) - 1; i >= max(0, len(h.ring)-6); i-- {
		m := h.view(i)
		if time.UnixMilli(m.At).Before(at.Add(-6 * time.Minute)) {
			break
		}
		if m.CPU != nil || m.Memory != nil {
			return m.CPU, m.Memory
		}
	}
	return nil, nil
}

// shares reads how busy a machine is from measurements in JSON (protocol §1.6.13). What is not there is unmeasured.
func shares(sample []byte) (cpu, memory uint8) {
	cpu, memory = unmeasured, unmeasured
	if len(sample) == 0 || len(sample) > maxSample || sample[0] != '{' {
		return cpu, memory
	}
	var in struct {
		Metrics []struct {
			Name   string `json:"name"`
			Tags   map[string]any
			Fields map[string]any
		} `json:"metrics"`
	}
	if json.Unmarshal(sample, &in) != nil {
		return cpu, memory
	}
	percent := func(v any) uint8 {
		n, ok := v.(float64)
		if !ok || n < 0 || n > 100.5 {
			return unmeasured
		}
		return uint8(min(n+0.5, 100))
	}
	for _, m := range in.Metrics {
		switch m.Name {
		case "cpu", "cpu_detail":
			if idle := percent(m.Fields["usage_idle"]); m.Tags["cpu"] == "cpu-total" && idle != unmeasured {
				cpu = 100 - idle
			}
		case "mem":
			memory = percent(m.Fields["used_percent"])
		}
	}
	return cpu, memory
}
