//go:build linux

package e2e

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// script is what was said between an agent and a back end of BK-CI while the agent was upgraded, stage after stage
// (testdata/recorded/README.md has the form).
type script struct {
	headers  [][2]string // of every request
	always   []*exchange
	stages   map[string]*stage
	sequence []string
}

// stage is a part of a script: what has to come in this order, and what may come at any time.
type stage struct {
	order []*exchange
	may   []*exchange
}

// exchange is one request and its answer.
type exchange struct {
	line    int
	request string // method, path and query
	body    string
	code    int
	header  [][2]string
	answer  string
	file    string // whose content is the answer
	drop    bool   // the connection is closed without one
}

var headerLine = regexp.MustCompile(`^([A-Z][A-Za-z0-9-]*): (.*)$`)

// readScript reads a script.
func readScript(name string) (*script, error) {
	text, err := os.ReadFile(filepath.Join("testdata", "recorded", name+".txt"))
	if err != nil {
		return nil, err
	}
	s := &script{stages: map[string]*stage{}}
	var at *stage
	var x *exchange
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimRight(line, "\n")
		word, rest, _ := strings.Cut(line, " ")
		bad := func(why string) error { return fmt.Errorf("%s.txt:%d: %s: %q", name, n, why, line) }
		switch word {
		case "", "#":
		case "==":
			at, x = &stage{}, nil
			s.stages[rest] = at
			s.sequence = append(s.sequence, rest)
		case ">>":
			m := headerLine.FindStringSubmatch(rest)
			if m == nil {
				return nil, bad("no header")
			}
			s.headers = append(s.headers, [2]string{m[1], m[2]})
		case ">", ">*":
			if x != nil && x.code == 0 && !x.drop && word == ">" && !regexp.MustCompile(`^[A-Z]+ /`).MatchString(rest) {
				x.body += strings.TrimSpace(rest)
				continue
			}
			x = &exchange{line: n, request: rest}
			switch {
			case at == nil && word == ">":
				return nil, bad("before the first stage nothing has an order")
			case at == nil:
				s.always = append(s.always, x)
			case word == ">":
				at.order = append(at.order, x)
			default:
				at.may = append(at.may, x)
			}
		case "<", "<=":
			m := headerLine.FindStringSubmatch(rest)
			switch {
			case x == nil:
				return nil, bad("an answer to nothing")
			case word == "<=":
				x.file = rest
			case rest == "closes the connection":
				x.drop = true
			case x.code == 0:
				if x.code, err = strconv.Atoi(rest); err != nil {
					return nil, bad("no status")
				}
			case m != nil && x.answer == "":
				x.header = append(x.header, [2]string{m[1], m[2]})
			default:
				x.answer += rest
			}
		default:
			return nil, bad("neither request nor answer")
		}
	}
	return s, nil
}

// backEnd plays a script to an agent. What is not in the script fails the test.
type backEnd struct {
	*testing.T
	*script
	name   string
	values func(name string) (string, bool) // what stands for ${name}
	files  map[string][]byte

	mu      sync.Mutex
	now     string
	next    int // of the order of now
	changed chan struct{}
	lost    bool // something came that is not in the script
	played  int
}

// enter goes on to a stage.
func (b *backEnd) enter(name string) {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stages[name] == nil {
		b.Fatalf("%s.txt has no stage %q", b.name, name)
	}
	b.now, b.next = name, 0
}

// play goes through a stage, and returns when all of it has been said.
func (b *backEnd) play(home *lab.Home, name string) {
	b.Helper()
	b.enter(name)
	b.finish(home)
}

func (b *backEnd) finish(home *lab.Home) {
	b.Helper()
	limit := time.NewTimer(2 * time.Minute)
	defer limit.Stop()
	for {
		b.mu.Lock()
		changed, name := b.changed, b.now
		order, next, lost := b.stages[name].order, b.next, b.lost
		b.mu.Unlock()
		if lost {
			b.Fatalf("%s.txt (%s): what comes next makes no sense any more\n%s", b.name, name, home.Log())
		}
		if next == len(order) {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			b.Fatalf("%s.txt:%d (%s): did not come: %s\n%s", b.name, order[next].line, name, b.fill(order[next].request), home.Log())
		}
	}
}

// fill replaces ${name}.
func (b *backEnd) fill(text string) string {
	return os.Expand(text, func(name string) string {
		if of, ok := strings.CutPrefix(name, "md5 "); ok {
			data, there := b.files[of]
			if !there {
				b.Errorf("%s.txt: no file %q", b.name, of)
			}
			sum := md5.Sum(data)
			return hex.EncodeToString(sum[:])
		}
		value, ok := b.values(name)
		if !ok {
			b.Errorf("%s.txt: nothing stands for ${%s}", b.name, name)
		}
		return value
	})
}

// answer answers one request as the script says.
func (b *backEnd) answer(q lab.Request) *lab.Answer {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.headers {
		if got, want := q.Header.Get(h[0]), b.fill(h[1]); got != want {
			b.Errorf("%s: header %s is %q, want %q", q.Endpoint, h[0], got, want)
		}
	}
	typed := "" // protocol §1.2
	if q.Endpoint.Method() == "POST" || q.Endpoint.Method() == "PUT" {
		typed = "application/json; charset=utf-8"
	}
	if got := q.Header.Get("Content-Type"); got != typed {
		b.Errorf("%s: Content-Type is %q, want %q", q.Endpoint, got, typed)
	}
	for _, name := range []string{"Range", "If-None-Match", "If-Modified-Since", "Authorization", "Cookie"} {
		if got := q.Header.Get(name); got != "" {
			b.Errorf("%s: has %s: %s, which nobody sent to BK-CI", q.Endpoint, name, got)
		}
	}
	at := b.stages[b.now]
	var why []string
	candidates := slices.Concat(at.may, b.always)
	ordered := b.next < len(at.order)
	if ordered {
		candidates = slices.Insert(candidates, 0, at.order[b.next])
	}
	for i, x := range candidates {
		differs := b.differs(x, q)
		if differs != "" {
			if strings.HasPrefix(differs, "body") {
				why = append(why, fmt.Sprintf("line %d: %s", x.line, differs))
			}
			continue
		}
		if i == 0 && ordered {
			b.next++
			b.wake()
		}
		b.played++
		return b.say(x, q)
	}
	expected := "nothing more"
	if ordered {
		expected = b.fill(at.order[b.next].request)
	}
	b.Errorf("%s.txt, stage %q: not in the script: %s %s\nexpected: %s\n%s", b.name, b.now, q, q.Body, expected, strings.Join(why, "\n"))
	b.lost = true
	b.wake()
	return &lab.Answer{Code: 404}
}

// wake wakes who waits; mu is held.
func (b *backEnd) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *backEnd) say(x *exchange, q lab.Request) *lab.Answer {
	a := &lab.Answer{Code: x.code, Header: http.Header{}, Drop: x.drop}
	for _, h := range x.header {
		a.Header.Set(h[0], b.fill(h[1]))
	}
	said := regexp.MustCompile(`\$\{said ([A-Za-z. ]+)\}`).ReplaceAllStringFunc(x.answer, func(what string) string {
		path := strings.Split(strings.TrimSuffix(strings.TrimPrefix(what, "${said "), "}"), ".")
		text, _ := json.Marshal(q.Get(path...))
		return string(text)
	})
	a.Body = []byte(b.fill(said))
	if x.file != "" {
		data, ok := b.files[x.file]
		if !ok {
			b.Errorf("%s.txt:%d: no file %q", b.name, x.line, x.file)
		}
		a.Body = data
	}
	return a
}

// differs says in what a request is not that of an exchange, "" when it is.
func (b *backEnd) differs(x *exchange, q lab.Request) string {
	method, target, _ := strings.Cut(b.fill(x.request), " ")
	path, query, _ := strings.Cut(target, "?")
	if method != q.Endpoint.Method() || path != q.Path {
		return "path"
	}
	if query != q.RawQuery { // not encoded in another way either
		return "query"
	}
	if x.body == "" {
		if len(q.Body) > 0 {
			return "body: none expected"
		}
		return ""
	}
	var want any
	if err := json.Unmarshal([]byte(b.fill(x.body)), &want); err != nil {
		b.Errorf("%s.txt:%d: %v", b.name, x.line, err)
		return "script"
	}
	var got any
	if err := json.Unmarshal(q.Body, &got); err != nil {
		return fmt.Sprintf("body: %v", err)
	}
	if why := unlike("", want, got); why != "" {
		return "body" + why
	}
	return ""
}

// unlike compares a body with its shape: "*string*", "*int*" and "*lines*" stand for any of the kind; a member whose name ends with ?
// need not be there. Everything else has to be the same, and nothing more may be there.
func unlike(where string, want, got any) string {
	switch w := want.(type) {
	case string:
		ok := true
		switch w {
		case "*string*":
			text, is := got.(string)
			ok = is && text != ""
		case "*int*":
			n, is := got.(float64)
			ok = is && n == float64(int64(n))
		case "*lines*":
			list, is := got.([]any)
			for _, one := range list {
				_, text := one.(string)
				is = is && text
			}
			ok = is && (len(list) == 0 || len(list) == 3)
		case "*any string*":
			_, ok = got.(string)
		default:
			ok = got == w
		}
		if !ok {
			return fmt.Sprintf("%s: %v, want %s", where, got, w)
		}
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s: %v, want an object", where, got)
		}
		known := map[string]bool{}
		for _, name := range slices.Sorted(maps.Keys(w)) {
			plain := strings.TrimSuffix(name, "?")
			known[plain] = true
			value, there := g[plain]
			if !there && plain != name {
				continue
			}
			if !there {
				return where + "." + plain + " is missing"
			}
			if why := unlike(where+"."+plain, w[name], value); why != "" {
				return why
			}
		}
		for name := range g {
			if !known[name] {
				return where + "." + name + " is too much"
			}
		}
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return fmt.Sprintf("%s: %v, want %v", where, got, w)
		}
		for i := range w {
			if why := unlike(fmt.Sprintf("%s[%d]", where, i), w[i], g[i]); why != "" {
				return why
			}
		}
	default:
		if got != want {
			return fmt.Sprintf("%s: %v, want %v", where, got, want)
		}
	}
	return ""
}

// replaced watches the home, and lists what was renamed into it, in order.
type replaced struct {
	mu    sync.Mutex
	names []string
}

func watchHome(t *testing.T, home *lab.Home) *replaced {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, home.Dir, unix.IN_MOVED_TO)
	}
	if err != nil {
		t.Fatalf("watch the home: %v", err)
	}
	r := &replaced{}
	events := os.NewFile(uintptr(fd), "inotify")
	over := make(chan struct{})
	go func() {
		defer close(over)
		buf := make([]byte, 64<<10)
		for {
			n, err := events.Read(buf)
			if err != nil {
				return
			}
			for at := 0; at+unix.SizeofInotifyEvent <= n; {
				length := int(uint32(buf[at+12]) | uint32(buf[at+13])<<8 | uint32(buf[at+14])<<16 | uint32(buf[at+15])<<24)
				name := strings.TrimRight(string(buf[at+unix.SizeofInotifyEvent:at+unix.SizeofInotifyEvent+length]), "\x00")
				at += unix.SizeofInotifyEvent + length
				r.mu.Lock()
				r.names = append(r.names, name)
				r.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() { _ = events.Close(); <-over })
	return r
}

// of lists those of some names, without those that come again.
func (r *replaced) of(names ...string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []string
	for _, name := range r.names {
		if slices.Contains(names, name) && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// TestRecordedUpgrades: an agent under devopsDaemon is upgraded by back ends of both generations, from the first question to the last
// report, by the letter of what is written down in testdata/recorded.
func TestRecordedUpgrades(t *testing.T) {
	t.Parallel()
	old, err := shipped()
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := old.another(t.TempDir(), "v71.30.110")
	if err != nil {
		t.Fatal(err)
	}
	next, err := nextPrograms()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ask", "split"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := readScript(name)
			if err != nil {
				t.Fatal(err)
			}
			w := daemonWorld(t)
			w.mode = name
			recordedLife(t, w, s, old, fresh, next.bad)
		})
	}
}

func recordedLife(t *testing.T, w *world, s *script, old, fresh suite, bad string) {
	home := w.home
	folder, archive, property := w.jdkFolder()
	b := &backEnd{T: t, script: s, name: w.mode, files: map[string][]byte{}, now: s.sequence[0], changed: make(chan struct{})}
	for name, path := range map[string]string{"devopsAgent": fresh.path("devopsAgent"), "devopsDaemon": fresh.path("devopsDaemon"),
		"upgrader": fresh.path("upgrader"), "bad agent": bad} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b.files[name] = data
	}
	lines := []string{`openjdk version "17.0.100" 2026-04-01`, "OpenJDK Runtime Environment (build 17.0.100+1-lab)", "OpenJDK 64-Bit Server VM (build 17.0.100+1-lab, mixed mode, sharing)"}
	if err := os.WriteFile(home.LabPath("java.new"), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil { //nolint:gosec // no secret
		t.Fatal(err)
	}
	const java = "case $1 in\n-version) cat \"$LAB_DIR/java.new\" >&2; exit 0 ;;\n--version) cat \"$LAB_DIR/java.new\"; exit 0 ;;\nesac\n"
	b.files["jdk"] = w.packJDK(t, "new\n", java, 0)
	b.files["worker"], b.files["worker 2"], b.files["script"] = []byte("v9.9.9\n"), []byte("v9.9.10\n"), []byte("#!/bin/sh\n# of the server\n")
	toJSON := func(list []string) string { text, _ := json.Marshal(list); return string(text) }
	values := map[string]string{
		"project": home.Project, "agent": home.Agent, "secret": home.Secret, "home": home.Dir,
		"old": old.version, "new": fresh.version, "worker": lab.WorkerVersion, "new worker": "v9.9.9", "newer worker": "v9.9.10",
		"jdk": toJSON(strings.Split(strings.TrimSpace(lab.JDKLines), "\n")), "new jdk": toJSON(lines),
		"arch": runtime.GOARCH, "suffix": strings.TrimPrefix(published("devopsAgent"), "upgrade/devopsAgent_linux"),
	}
	b.values = func(name string) (string, bool) { value, ok := values[name]; return value, ok }
	for _, e := range slices.Concat(lab.AgentEndpoints(), lab.WorkerEndpoints()) {
		w.rec.On(e, b.answer)
	}

	home.Write(".agent.properties", w.read(".agent.properties")+"devops.docker.enable=true\n")
	home.Write("agent.toml", "[upgrade]\nsettle_after = \"0s\"\n")
	if folder != "jdk" {
		home.AddJDK(folder)
	}
	home.Write(folder+"/release", "old\n")
	home.Remove("tmp/upgrader")
	home.Remove("devopsAgent")
	for _, name := range suitePrograms() {
		if err := copyFile(old.path(name), home.Path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(home.LabPath("mode"), []byte("exit 1"), 0o644); err != nil { //nolint:gosec // no secret
		t.Fatal(err)
	}
	seen := watchHome(t, home)
	home.StartProgram(home.Path("devopsDaemon"), "/", nil, "DEVOPS_TRIAL_PATIENCE=20s")

	has := func(name, file string) {
		t.Helper()
		if !lab.Eventually(5*time.Second, func() bool { return w.read(name) == string(b.files[file]) }) {
			t.Errorf("after %q: %s is not %s", b.now, name, file)
		}
	}
	installed := func() {
		t.Helper()
		has("devopsAgent", "devopsAgent")
		has("devopsDaemon", "devopsDaemon")
		if w.read(folder+"/release") != "new\n" || w.read(folder+"/bin/java") == "" {
			t.Errorf("after %q: %s holds %q", b.now, folder, w.read(folder+"/release"))
		}
		if dir := home.Property(property); dir != home.Path(folder) && dir != folder {
			t.Errorf("after %q: %s is %q", b.now, property, dir)
		}
	}
	restart := func() {
		t.Helper()
		w.run(t, func() { w.killAgent() })
	}

	b.play(home, "start")
	b.play(home, "everything is offered")
	installed()
	has("worker-agent.jar", "worker")
	if home.Has("agent_docker_init.sh") {
		t.Error("the container script came with an agent")
	}
	b.enter("the next agent reports")
	restart()
	b.finish(home)
	b.play(home, "what was left out")
	has("agent_docker_init.sh", "script")
	if got, want := seen.of(folder, "worker-agent.jar", "devopsAgent", "agent_docker_init.sh"), []string{folder, "worker-agent.jar", "devopsAgent", "agent_docker_init.sh"}; !slices.Equal(got, want) {
		t.Errorf("replaced in the order %v, want %v", got, want)
	}
	for name, file := range map[string]string{"devopsAgent": "devopsAgent", "devopsDaemon": "devopsDaemon", "upgrader": "upgrader",
		"worker-agent.jar": "worker", archive: "jdk", "agent_docker_init.sh": "script"} {
		has("tmp/"+name, file)
	}
	b.play(home, "nothing is modified")
	installed()
	b.enter("another worker")
	restart()
	b.finish(home)
	has("worker-agent.jar", "worker 2")
	b.play(home, "a bad agent")
	installed()
	b.play(home, "downloads fail")
	installed()
	has("worker-agent.jar", "worker 2")
	has("tmp/worker-agent.jar", "worker 2") // and nothing else is there to mend it with (statement 84)
	if b.played != w.rec.Mark() {
		t.Errorf("%d of %d requests were in the script", b.played, w.rec.Mark())
	}
	for _, pattern := range []string{"jdk*_*", "*.zip", "tmp/incoming/*", "upgrade/open-*"} {
		if found, _ := filepath.Glob(home.Path(filepath.FromSlash(pattern))); len(found) > 0 {
			t.Errorf("left behind: %v", found)
		}
	}
	t.Logf("%d requests, all of them in the script", b.played)
}
