//go:build linux

package e2e

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

const (
	startLimit = 20 * time.Second // exec to the first request, on a busy machine
	pollLimit  = 25 * time.Second // to the second next poll
)

// world is one agent, its home and the server it talks to.
type world struct {
	*S
	rec   *lab.Recorder
	home  *lab.Home
	agent *lab.Agent
}

// world prepares a server and a home for the scenario's mode; nothing is started.
func (s *S) world(o lab.HomeOptions) *world {
	return s.worldOn(lab.NewRecorder(s, lab.RecorderOptions{}), o)
}

func (s *S) worldOn(rec *lab.Recorder, o lab.HomeOptions) *world {
	if o.Gateway == "" {
		o.Gateway = rec.URL
	}
	if o.Mode == "" && s.mode != "worker" {
		o.Mode = s.mode
	}
	w := &world{S: s, rec: rec}
	s.Cleanup(func() { // the last of this home's: its programs have ended
		data, _ := os.ReadFile(w.home.LabPath("output"))
		for _, trouble := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
			if _, rest, found := strings.Cut(string(data), trouble); found {
				s.Errorf("a program said %s%.2000s", trouble, rest)
			}
		}
	})
	w.home = lab.NewHome(s, s.programs, o)
	s.mu.Lock()
	s.homes = append(s.homes, w.home)
	s.mu.Unlock()
	return w
}

// start runs the agent and waits for its first poll.
func (w *world) start(env ...string) *world {
	mark := w.rec.Mark()
	w.launch(env...)
	if _, ok := w.rec.WaitFor(startLimit, mark, w.poll()); !ok {
		w.Fatalf("no %s within %v after the first request; output: %s", w.poll().Short(), startLimit, w.agent.Output())
	}
	return w
}

// launch runs the agent and waits for its first request.
func (w *world) launch(env ...string) *world {
	mark := w.rec.Mark()
	w.agent = w.home.Start(env...)
	if _, ok := w.rec.Wait(startLimit, mark, func(lab.Request) bool { return true }); !ok {
		w.Fatalf("no request within %v after the start; output: %s", startLimit, w.agent.Output())
	}
	return w
}

// poll is the call that comes every 5 s in this mode; beat the one that carries the heartbeat.
func (w *world) poll() lab.Endpoint {
	if w.mode == "ask" {
		return lab.Ask
	}
	return lab.Status
}

func (w *world) beat() lab.Endpoint {
	if w.mode == "ask" {
		return lab.Ask
	}
	return lab.Heartbeat
}

// heartbeat returns the heartbeat inside a request of w.beat.
func (w *world) heartbeat(q lab.Request) map[string]any {
	if q.Endpoint == lab.Ask {
		beat, _ := q.Get("heartbeat").(map[string]any)
		return beat
	}
	return q.JSON()
}

// watch observes for a while and fails when the agent ends meanwhile.
func (w *world) watch(d time.Duration) {
	if code, err := w.agent.Wait(d); err == nil {
		w.Fatalf("the agent ended with code %d; output: %s", code, w.agent.Output())
	}
}

// beats waits for n more heartbeats to be answered.
func (w *world) beats(n int) {
	mark := w.rec.Mark()
	answered := func() int {
		count := 0
		for _, q := range w.rec.All()[mark:] {
			if at, _ := q.Done(); q.Endpoint == w.beat() && !at.IsZero() {
				count++
			}
		}
		return count
	}
	if !w.rec.Until(time.Duration(n)*15*time.Second+5*time.Second, func() bool { return answered() >= n }) {
		w.Fatalf("only %d of %d heartbeats came; output: %s", answered(), n, w.agent.Output())
	}
}

// alive checks that the agent still runs and has not started its own removal.
func (w *world) alive(n int) bool {
	return w.check(n, w.agent.Alive(), "the agent ended: %v", w.ending()) &&
		w.check(n, len(w.home.UpgraderCalls()) == 0, "the upgrader was started: %v", w.home.UpgraderCalls())
}

func (w *world) ending() string {
	if w.agent.Alive() {
		return "still running"
	}
	how, _ := w.agent.Exited()
	return how + "; output: " + w.agent.Output()
}

// finish waits for the accepted report of a job.
func (w *world) finish(limit time.Duration, b lab.Build) (lab.Request, bool) {
	if !w.rec.Until(limit, func() bool { return w.rec.Accepted(b.ID) > 0 }) {
		return lab.Request{}, false
	}
	reports := w.rec.Finishes(b.ID)
	return reports[len(reports)-1], true
}

// mustFinish is finish for scenarios that make no sense without it.
func (w *world) mustFinish(limit time.Duration, b lab.Build) lab.Request {
	q, ok := w.finish(limit, b)
	if !ok {
		w.Fatalf("no finish report for %s within %v; worker starts: %d, output: %s", b.ID, limit, w.home.Run(b).Starts(), w.agent.Output())
	}
	return q
}

// mustBegin waits for the worker of a job.
func (w *world) mustBegin(limit time.Duration, b lab.Build) {
	if !w.home.WaitBegan(limit, b) {
		reports := w.rec.Finishes(b.ID)
		w.Fatalf("the worker of %s did not begin within %v; reports: %v; output: %s", b.ID, limit, reports, w.agent.Output())
	}
}

// failed checks that a report says failure with one of some codes.
func (w *world) failed(n int, q lab.Request, codes ...string) {
	code, _ := q.Get("error", "errorCode").(json.Number)
	message, _ := q.Get("error", "errorMessage").(string)
	w.check(n, q.Get("success") == false, "success is %v, want false: %v", q.Get("success"), q)
	w.check(n, slices.Contains(codes, code.String()), "errorCode is %q, want one of %v: %v", code, codes, q)
	w.check(n, q.Get("error", "errorType") == "USER", "errorType is %v, want USER", q.Get("error", "errorType"))
	w.check(n, message != "", "errorMessage is empty: %v", q)
}

// kinds returns, for the requests from mark on, what kinds of jobs were asked for.
func (w *world) kinds(mark int) []string {
	var kinds []string
	for _, q := range w.rec.All()[mark:] {
		switch q.Endpoint {
		case lab.Claim:
			kinds = append(kinds, q.Query.Get("buildType"))
		case lab.Ask:
			kind, _ := q.Get("askEnable", "build").(string)
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// gaps returns the times between consecutive requests.
func gaps(requests []lab.Request) []time.Duration {
	var list []time.Duration
	for i := 1; i < len(requests); i++ {
		list = append(list, requests[i].At.Sub(requests[i-1].At))
	}
	return list
}

func mean(list []time.Duration) time.Duration {
	if len(list) == 0 {
		return 0
	}
	var sum time.Duration
	for _, d := range list {
		sum += d
	}
	return sum / time.Duration(len(list))
}

// job decodes the last argument of a worker.
func job(args []string) (map[string]any, error) {
	if len(args) == 0 {
		return nil, errors.New("no arguments")
	}
	data, err := base64.StdEncoding.Strict().DecodeString(args[len(args)-1])
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.UseNumber()
	var v map[string]any
	return v, d.Decode(&v)
}

// unquote takes shell quoting out of a line, for comparing words.
func unquote(line string) string { return strings.NewReplacer(`'`, "", `"`, "", `\`, "").Replace(line) }
