package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// TestCallsAreCounted: shares, held answers, answers that ask to come later, and errors, those apart that a profile makes.
func TestCallsAreCounted(t *testing.T) {
	c := newTally()
	c.cut = broken
	c.note("ask", time.Now(), 0, true, nil)
	if n := c.all().count; n != 0 {
		t.Fatalf("%d calls were counted before the beginning", n)
	}
	c.open.Store(true)
	for i := range 100 {
		c.note("ask", time.Now().Add(-time.Duration(i+1)*time.Second), 0, true, nil)
	}
	c.note("ask, held", time.Now().Add(-31*time.Second), 30*time.Second, false, nil)
	c.note("ask, held", time.Now(), 30*time.Second, false, nil)
	c.note("ask", time.Now(), 0, false, &wire.StatusError{Op: "ask", HTTP: 429})
	c.note("ask", time.Now(), 0, false, &wire.StatusError{Op: "ask", HTTP: 503})
	c.note("ask", time.Now(), 0, false, fmt.Errorf("ask: %w", net.ErrClosed))
	list := c.figures()
	if len(list) != 2 || list[0].name != "ask" || list[0].count != 102 || list[0].failed != 2 || list[1].held != 1 {
		t.Fatalf("%+v", list)
	}
	for _, one := range []struct{ got, want time.Duration }{{list[0].p50, 51 * time.Second}, {list[0].p90, 91 * time.Second}, {list[0].p99, 100 * time.Second},
		{list[0].max, 100 * time.Second}, {list[1].max, time.Second}} {
		if one.got < one.want || one.got > one.want+500*time.Millisecond {
			t.Errorf("%v, not %v", one.got, one.want)
		}
	}
	if c.paced != 1 || len(c.errors) != 1 || len(c.waiting) != 1 || c.mostAgents() != 100 {
		t.Errorf("paced %d, errors %v, own %v, agents in a second %d", c.paced, c.errors, c.waiting, c.mostAgents())
	}
}

// TestDrawingsAreWellFormed: whatever the names are.
func TestDrawingsAreWellFormed(t *testing.T) {
	r := &result{name: "x", title: `a "title" & <more>`, tally: newTally(), meter: &meter{at: []float64{1, 2}, cores: []float64{0.5, 1}, rss: []float64{10, 20}, took: time.Second},
		rows: []row{{"what", "≤ 1", "2 | 3", false, true}}, faults: []string{"1 × ask: 503 | no"}}
	r.tally.open.Store(true)
	for i := range 50 {
		r.tally.note("<ask>", time.Now().Add(-time.Duration(i)*time.Millisecond), 0, true, nil)
	}
	text := drawing(r.title, r.panels())
	d := xml.NewDecoder(strings.NewReader(text))
	lines := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if start, is := token.(xml.StartElement); is && start.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 5 {
		t.Errorf("%d lines, not 5", lines)
	}
	if md := page(options{agents: 3}, nil, []*result{r}); !strings.Contains(md, `2 \| 3 | **no** |`) || !strings.Contains(md, "](fleetsim/x.svg)") {
		t.Errorf("%s", md)
	}
}

func TestAxesEndAtRoundNumbers(t *testing.T) {
	for v, want := range map[float64]float64{0: 1, 0.7: 0.8, 1: 1, 3: 4, 47: 50, 81: 100, 5800: 8000} {
		if got := niceAbove(v); got < want*0.999 || got > want*1.001 {
			t.Errorf("%v: %v, not %v", v, got, want)
		}
	}
}

// TestACutNetworkEndsCalls: those under way and those to come, until it is back.
func TestACutNetworkEndsCalls(t *testing.T) {
	asked, release := make(chan struct{}, 1), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			asked <- struct{}{}
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	}))
	defer server.Close()
	defer close(release)
	w := newNetwork(0, new(atomic.Int64))
	client, err := w.client(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	get := func(path string) error {
		resp, err := client.Get(server.URL + path)
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- get("/hold") }()
	<-asked
	w.cut(true)
	if err := <-ended; err == nil || !broken(err) {
		t.Errorf("a call under way ended with %v", err)
	}
	if err := get("/"); !errors.Is(err, errCut) {
		t.Errorf("without a network: %v", err)
	}
	w.cut(false)
	if err := get("/"); err != nil {
		t.Errorf("with the network back: %v", err)
	}
}

func TestWrongCommandLinesAreRefused(t *testing.T) {
	for want, args := range map[string][]string{
		"--controller is missing": nil,
		"--agents 0":              {"--controller", "x", "--agents", "0"},
		"--profiles nonsense":     {"--controller", "x", "--profiles", "nonsense"},
		"start the controller":    {"--controller", t.TempDir() + "/none", "--agents", "1", "--dir", t.TempDir() + "/data"},
	} {
		var out bytes.Buffer
		cmd := command(&out)
		cmd.SetArgs(args)
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
