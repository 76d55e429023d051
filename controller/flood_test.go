package controller

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// TestOneAgentInALoop: 500 connections with one agent's secret in a tight loop take neither the others' time nor memory. They
// end up waiting; everybody else's calls are answered.
func TestOneAgentInALoop(t *testing.T) {
	w := serve(t, Options{AskSpacing: time.Nanosecond, HeartbeatSpacing: time.Nanosecond, StatusSpacing: time.Nanosecond, LostAfter: time.Hour})
	looping := w.imported(NewAgent{})
	others := make([]*machine, 5)
	for i := range others {
		others[i] = w.imported(NewAgent{})
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var refused, served atomic.Int64
	const connections = 500
	busy := make(chan struct{})
	var loops sync.WaitGroup
	defer loops.Wait()
	defer stop()
	flood := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections}}
	defer flood.CloseIdleConnections()
	o := newOriginal(t, flood, w.url, looping.id)
	for range connections {
		loops.Go(func() {
			for ctx.Err() == nil {
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/ms/environment"+agentPrefix+"/agents/newHeartbeat", strings.NewReader(originalBeat))
				if err != nil {
					t.Error(err)
					return
				}
				req.Header = o.header.Clone()
				resp, err := flood.Do(req)
				if err != nil {
					continue // the end
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusTooManyRequests {
					served.Add(1)
				} else if refused.Add(1) == connections {
					close(busy)
				}
			}
		})
	}
	select {
	case <-busy:
	case <-time.After(2 * time.Minute):
		t.Fatalf("%d calls were served, %d refused", served.Load(), refused.Load())
	}
	began, before := time.Now(), served.Load()
	for range 20 {
		for _, m := range others {
			if _, err := m.client.Beat(t.Context(), beat()); err != nil {
				t.Errorf("another agent's heartbeat: %v", err)
			}
			m.ask(asking(wire.None), 0)
		}
	}
	pace := w.server.opts.CallsPerSecond
	if n, most := served.Load()-before, int64(burstCalls+2*pace*(time.Since(began).Seconds()+1)); n > most {
		t.Errorf("%d calls of the loop were served in %v", n, time.Since(began))
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	if mem.HeapInuse > 512<<20 {
		t.Errorf("%d MB of memory", mem.HeapInuse>>20)
	}
	for _, m := range append(others, looping) {
		if a, err := w.server.FindAgent(m.id.Agent); err != nil || a.Status != wire.ImportOK {
			t.Errorf("%+v, %v", a.Status, err)
		}
	}
}

// TestALoopGoesRoundOnceASecond: calls over the pace wait for their refusal; after some quiet the agent may call as before.
func TestALoopGoesRoundOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(Options{StatusSpacing: time.Nanosecond})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, server: s, http: httpOf(s), url: "http://controller"}
		o := newOriginal(t, w.http, w.url, w.imported(NewAgent{}).id)
		stranger := newOriginal(t, w.http, w.url, wire.Identity{Agent: "nobody", Project: "demo", Secret: "none"})
		path := "/ms/environment" + agentPrefix + "/status"
		count := func(o *original, n int) map[int]int {
			codes := make(map[int]int)
			for range n {
				code, _, _ := o.send("GET", path, "")
				codes[code]++
			}
			return codes
		}
		if codes := count(o, burstCalls-1); codes[200] != burstCalls-1 { // one was its start
			t.Errorf("%v", codes)
		}
		began := time.Now()
		code, header, _ := o.send("GET", path, "")
		if code != http.StatusTooManyRequests || header.Get("Retry-After") == "" || time.Since(began) != floodPause {
			t.Errorf("%d after %v", code, time.Since(began))
		}
		time.Sleep(10 * time.Second)
		if codes := count(o, 500); codes[200] != 500 {
			t.Errorf("after a pause: %v", codes)
		}
		if codes := count(stranger, 500); codes[401] != 500 {
			t.Errorf("strangers: %v", codes)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestSlowBodiesKeepNobodyOut: connections that announce a body and send none of it take the room of one caller, not that of
// all; in the end they are closed.
func TestSlowBodiesKeepNobodyOut(t *testing.T) {
	w := serve(t, Options{AskSpacing: time.Nanosecond})
	m := w.imported(NewAgent{})
	for _, id := range []wire.Identity{{Agent: "nobody", Project: "demo", Secret: "none"}, w.imported(NewAgent{}).id} {
		for range 100 {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(w.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			for _, path := range []string{wire.PathAsk} {
				if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nX-DEVOPS-BUILD-TYPE: AGENT\r\nX-DEVOPS-PROJECT-ID: %s\r\nX-DEVOPS-AGENT-ID: %s\r\nX-DEVOPS-AGENT-SECRET-KEY: %s\r\nContent-Length: 1000\r\n\r\n{",
					path, id.Project, id.Agent, string(id.Secret)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	m.ask(asking(wire.None), 0)
	last, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = last.Close() }()
	if _, err := fmt.Fprintf(last, "POST %s HTTP/1.1\r\nHost: x\r\nX-DEVOPS-BUILD-TYPE: AGENT\r\nX-DEVOPS-PROJECT-ID: demo\r\nX-DEVOPS-AGENT-ID: nobody\r\nX-DEVOPS-AGENT-SECRET-KEY: x\r\nContent-Length: 10\r\n\r\n", wire.PathAsk); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(last), nil)
	if err != nil || resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("one stranger more: %+v, %v", resp, err)
	}
	if err == nil {
		_ = resp.Body.Close()
	}
}

// TestBodiesShareABudget: who needs more than is left waits, in order, or gives up.
func TestBodiesShareABudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &budget{left: 100}
		if !b.take(t.Context(), 60, time.Second) || !b.take(t.Context(), 40, time.Second) || b.take(t.Context(), 1, time.Second) {
			t.Fatal("100 bytes are not 100 bytes")
		}
		order := make(chan int, 2)
		for i, n := range []int64{50, 10} {
			go func() {
				if b.take(t.Context(), n, time.Minute) {
					order <- i
				}
			}()
			synctest.Wait()
		}
		b.give(40) // not enough for the first, so the second waits as well
		synctest.Wait()
		if len(order) != 0 {
			t.Error("the second did not wait for the first")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if b.take(ctx, 1, time.Minute) {
			t.Error("given to nobody")
		}
		b.give(60)
		if first, second := <-order, <-order; first+second != 1 || b.left != 40 {
			t.Errorf("%d, %d, %d left", first, second, b.left)
		}
	})
}
