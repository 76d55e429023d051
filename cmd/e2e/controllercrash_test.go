//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
	"github.com/devops-agent/devops-agent/controller"
)

// operatorAPI is the operator's API of a controller that may be gone at any moment.
type operatorAPI struct {
	c     *lab.Controller
	token string
	http  http.Client
}

func newOperatorAPI(t *testing.T, c *lab.Controller) *operatorAPI {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(c.Data, "operator.token"))
	if err != nil {
		t.Fatal(err)
	}
	api := &operatorAPI{c: c, token: strings.TrimSpace(string(token)), http: http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}}
	t.Cleanup(api.http.CloseIdleConnections)
	return api
}

// call returns the status and the body of an answer that came whole.
func (a *operatorAPI) call(method, path string, in any) (int, []byte, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return 0, nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, a.c.URL+"/api/v1"+path, body)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, data, err
}

// lines reads a build's log from a line on.
func (a *operatorAPI) lines(id string, after int) (lines []controller.Line, err error) {
	code, data, err := a.call("GET", "/builds/"+id+"/log?after="+strconv.Itoa(after), nil)
	if err != nil || code != 200 {
		return nil, fmt.Errorf("log of %s: status %d: %w", id, code, err)
	}
	for line := range bytes.Lines(data) {
		var e struct{ Line controller.Line }
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, err
		}
		lines = append(lines, e.Line)
	}
	return lines, nil
}

// crashBuild is one build of the test, and what was seen of it.
type crashBuild struct {
	id    string // "" when its submission was not acknowledged
	token string // of the file that each run of its script writes a line to
	fails bool
	seen  int // lines of its log that were there before a kill
}

// TestControllerKilledAtRandomMoments: kill -9 of the controller at random moments, also while it starts, under real agents
// and workers that build. What was acknowledged is there afterwards: builds, log lines, ends and reports; and each build
// runs once. TestCrashController has more of both.
func TestControllerKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	testControllerKilled(t, 5, 2)
}

func testControllerKilled(t *testing.T, kills, agents int) {
	seed := labSeed(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	p := programs(t)
	c := lab.NewController(t, p)
	homes := make([]*lab.Home, 0, agents)
	for range agents {
		home, _ := enrolled(t, c)
		homes = append(homes, home)
	}
	api := newOperatorAPI(t, c)
	ran := t.TempDir()
	if err := os.Chmod(ran, 0o777); err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex // of builds
	var builds []*crashBuild
	submit := func(n int) {
		b := &crashBuild{token: fmt.Sprintf("t%04d", n), fails: n%5 == 4}
		code := 0
		if b.fails {
			code = 3
		}
		script := fmt.Sprintf("echo run >> %s/%s\nfor i in $(seq 1 30); do echo line-$i-; sleep 0.05; done\necho total-30-\nexit %d\n", ran, b.token, code)
		spec := map[string]any{"name": b.token, "steps": []map[string]any{{"id": "one", "script": script}}}
		status, data, err := api.call("POST", "/builds", map[string]any{"spec": spec})
		var made struct{ ID string }
		if err == nil && status == 200 && json.Unmarshal(data, &made) == nil {
			b.id = made.ID
		}
		mu.Lock()
		builds = append(builds, b)
		mu.Unlock()
	}
	stop := make(chan struct{})
	var submitter sync.WaitGroup
	submitter.Go(func() {
		pause := time.NewTicker(time.Second)
		defer pause.Stop()
		for n := 0; ; n++ {
			for range agents {
				submit(n)
				n++
			}
			select {
			case <-stop:
				return
			case <-pause.C:
			}
		}
	})
	for i := range kills {
		<-time.After(time.Duration(rng.IntN(1200)) * time.Millisecond)
		mu.Lock()
		known := append([]*crashBuild(nil), builds...)
		mu.Unlock()
		for _, b := range known[max(0, len(known)-20):] { // those that are under way
			if b.id == "" {
				continue
			}
			if lines, err := api.lines(b.id, b.seen); err == nil {
				b.seen += len(lines)
			}
		}
		<-time.After(time.Duration(rng.IntN(200)) * time.Millisecond)
		c.Kill()
		if i%4 == 3 { // and again before it is up
			early := exec.Command(p.Control, "serve", "--data", c.Data, "--listen", strings.TrimPrefix(c.URL, "http://"))
			if err := early.Start(); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Duration(rng.IntN(100)) * time.Millisecond)
			_ = early.Process.Kill()
			_ = early.Wait()
		}
		c.Start()
	}
	close(stop)
	submitter.Wait()

	deadline := time.Now().Add(3*time.Minute + time.Duration(len(builds)/agents)*3*time.Second)
	acknowledged, ended := 0, map[string]int{}
	var wrong []string // builds that are not as they should be
	for _, b := range builds {
		runs, _ := os.ReadFile(filepath.Join(ran, b.token))
		if b.id == "" {
			if n := bytes.Count(runs, []byte("run")); n > 1 {
				t.Errorf("a build whose submission was not acknowledged ran %d times", n)
			}
			continue
		}
		acknowledged++
		var view controller.Build
		over := func() bool {
			status, data, err := api.call("GET", "/builds/"+b.id, nil)
			return err == nil && status == 200 && json.Unmarshal(data, &view) == nil && view.State.Over() && (view.StartedAt == 0 || view.Report != nil)
		}
		if !lab.Eventually(max(time.Second, time.Until(deadline)), over) {
			t.Errorf("build %s is %s, report %v", b.id, view.State, view.Report)
			wrong = append(wrong, b.id)
			continue
		}
		ended[string(view.State)]++
		runs, _ = os.ReadFile(filepath.Join(ran, b.token))
		n := bytes.Count(runs, []byte("run"))
		want := controller.Succeeded
		if b.fails {
			want = controller.Failed
		}
		if n > 1 || view.State == controller.Succeeded && n != 1 || view.State != want && view.Message == "" {
			t.Errorf("build %s ran %d times and is %s (%s)", b.id, n, view.State, view.Message)
		}
		if view.State != want {
			t.Errorf("build %s is %s (%s), want %s; it ran %d times, report %+v", b.id, view.State, view.Message, want, n, view.Report)
			wrong = append(wrong, b.id)
		}
		if view.Report == nil || !view.Report.Success { // its worker ended as it should, whatever the script said
			t.Errorf("build %s: report %+v", b.id, view.Report)
		}
		lines, err := api.lines(b.id, 0)
		if err != nil || len(lines) < b.seen {
			t.Errorf("build %s has %d lines of its log, %d were there: %v", b.id, len(lines), b.seen, err)
		}
		text := ""
		for i, l := range lines {
			if l.Seq != int64(i+1) {
				t.Errorf("build %s: line %d has number %d", b.id, i+1, l.Seq)
				break
			}
			text += l.Message + "\n"
		}
		next := 0
		for _, m := range numbered.FindAllStringSubmatch(text, -1) {
			if next++; m[1] != strconv.Itoa(next) {
				t.Errorf("build %s: line-%s- where line-%d- should be", b.id, m[1], next)
				break
			}
		}
		if next != 30 || !strings.Contains(text, "total-30-") {
			t.Errorf("build %s: %d lines of 30 are in its log", b.id, next)
		}
	}
	if out, code := c.Run("", "check"); code != 0 {
		t.Errorf("check: %s", out)
	}
	t.Logf("%d kills, %d agents, %d builds, %d acknowledged, ended: %v", kills, agents, len(builds), acknowledged, ended)
	if t.Failed() {
		t.Logf("controller:\n%s", about(c.Log(), wrong))
		for _, home := range homes {
			if said := about(home.Log(), wrong); said != "" {
				t.Logf("agent:\n%s", said)
			}
		}
	}
}

// about is what a log says of some builds: lines that name one, and a few after each, for workers name theirs once.
func about(log string, builds []string) string {
	const after = 15
	var said strings.Builder
	left := 0
	for line := range strings.Lines(log) {
		if slices.ContainsFunc(builds, func(id string) bool { return strings.Contains(line, id) }) {
			left = after
		}
		if left > 0 {
			left--
			said.WriteString(line)
		}
	}
	return said.String()
}
