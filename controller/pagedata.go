package controller

import (
	"bufio"
	"cmp"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Bounds of what the page shows at once.
const (
	shownAgents   = 500
	shownRollouts = 10
	shownBuilds   = 50   // of one agent
	searchBuilds  = 5000 // of which they are, the newest
)

// pageAgent is one line of the page.
type pageAgent struct {
	ID           string           `json:"id"`
	HostName     string           `json:"hostName,omitempty"`
	Status       wire.AgentStatus `json:"status"`
	AgentVersion string           `json:"agentVersion,omitempty"`
	System       string           `json:"system"`
	Labels       []string         `json:"labels,omitempty"` // those set
	Builds       int              `json:"builds,omitempty"`
	Places       int              `json:"places,omitempty"` // builds at once, 0 is as many as there are
	CPU          *int             `json:"cpu,omitempty"`    // percent, when measured within the last minutes
	Memory       *int             `json:"memory,omitempty"`
	SeenAt       int64            `json:"seenAt,omitempty"`
	Upgrade      *AgentUpgrade    `json:"upgrade,omitempty"`
}

// pageView is what all views of the page show, and the list of agents.
type pageView struct {
	Version  string        `json:"version"`
	Gateway  string        `json:"gateway,omitempty"` // as machines reach us, when the operator said so
	Pin      string        `json:"pin,omitempty"`     // of the controller's own certificate, which nobody vouches for
	Now      int64         `json:"now"`
	Role     Role          `json:"role"`
	User     string        `json:"user"`  // name of the token
	Total    int           `json:"total"` // agents
	Online   int           `json:"online"`
	Queued   int           `json:"queued"` // builds
	Running  int           `json:"running"`
	Found    int           `json:"found"`  // agents that the filter lets through
	Agents   []pageAgent   `json:"agents"` // a page of those, sorted
	Rollouts []RolloutInfo `json:"rollouts"`
	Releases int           `json:"releases"`
	Newest   string        `json:"newest,omitempty"` // release
}

// agentQuery is which agents the page wants to see: those whose names, labels or versions have the text in them.
type agentQuery struct {
	text, status, sort string
	down               bool
	offset, limit      int
}

func (s *Server) agentQuery(r *http.Request) (agentQuery, error) {
	limit, err := queryInt(r, "limit", shownAgents)
	if err != nil {
		return agentQuery{}, err
	}
	offset, err := queryInt(r, "offset", 0)
	q := r.URL.Query()
	return agentQuery{text: strings.ToLower(clip(q.Get("q"), 200)), status: q.Get("status"), sort: q.Get("sort"), down: q.Get("down") == "true",
		offset: int(min(offset, 1<<30)), limit: int(min(limit, shownAgents))}, err
}

// pageState is GET /page/state[?q=TEXT&status=S&sort=COLUMN&down=true&offset=N&limit=N].
func (s *Server) pageState(w http.ResponseWriter, r *http.Request) {
	q, err := s.agentQuery(r)
	if err != nil {
		operatorError(w, err)
		return
	}
	v := s.view(time.Now(), q)
	v.Role, v.User, v.Pin = callerOf(r).Role, callerOf(r).Name, s.ownPin()
	apiAnswer(w, http.StatusOK, v)
}

// ownPin is the fingerprint of the controller's own certificate, "" when it has none.
func (s *Server) ownPin() string {
	if !s.opts.OwnCertificate || s.opts.Dir == "" {
		return ""
	}
	data, err := readCertFile(filepath.Join(s.opts.Dir, OwnCertFile))
	if err != nil {
		return "" // new agents are not told of it either: see certificate
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return ""
	}
	return wire.PinOf(block.Bytes).String()
}

func (s *Server) view(now time.Time, q agentQuery) pageView {
	v := pageView{Version: s.opts.Version, Gateway: s.opts.PublicURL, Now: millis(now), Agents: []pageAgent{}, Rollouts: []RolloutInfo{}}
	if releases := s.Releases(); len(releases) > 0 {
		v.Releases, v.Newest = len(releases), releases[0].Version
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.Queued = len(s.queue)
	var all []*agent
	for _, a := range s.agents {
		if a.Status == wire.Deleted {
			continue
		}
		v.Total++
		v.Running += len(a.builds)
		if a.Status == wire.ImportOK {
			v.Online++
		}
		if a.matches(q) {
			all = append(all, a)
		}
	}
	v.Found = len(all)
	if q.limit > 0 {
		order := agentOrder(q)
		slices.SortFunc(all, order)
		from := min(q.offset, len(all))
		for _, a := range all[from:min(len(all), from+q.limit)] {
			v.Agents = append(v.Agents, s.pageLine(a, now))
		}
	}
	for _, r := range slices.Backward(s.rollouts) {
		if r.inForce() && len(v.Rollouts) < shownRollouts {
			v.Rollouts = append(v.Rollouts, s.rolloutInfo(r, false))
		}
	}
	return v
}

func (s *Server) pageLine(a *agent, now time.Time) pageAgent {
	line := pageAgent{ID: a.ID, HostName: a.HostName, Status: a.Status, AgentVersion: a.AgentVersion, System: a.system(),
		Labels: slices.Clone(a.Labels), Builds: len(a.builds), Upgrade: s.agentUpgrade(a), SeenAt: a.seenAt(now)}
	if a.Parallel != nil {
		line.Places = *a.Parallel
	}
	line.CPU, line.Memory = a.past.recent(now)
	return line
}

func (a *agent) system() string {
	if a.Arch != "" {
		return a.OS + "/" + a.Arch
	}
	return a.OS
}

// seenAt is the last sign of life, 0 when it never started.
func (a *agent) seenAt(now time.Time) int64 {
	switch {
	case !a.here():
		return 0
	case a.held > 0:
		return millis(now)
	}
	return millis(a.seen)
}

func (a *agent) matches(q agentQuery) bool {
	if q.status != "" && q.status != string(a.Status) {
		return false
	}
	if q.text == "" {
		return true
	}
	for _, text := range append([]string{a.IP, a.AgentVersion, a.Project, a.system()}, a.allLabels()...) {
		if strings.Contains(strings.ToLower(text), q.text) {
			return true
		}
	}
	return false
}

// agentOrder compares agents by a column; equals, and unknown columns, by trouble and name.
func agentOrder(q agentQuery) func(x, y *agent) int {
	rest := func(x, y *agent) int {
		return cmp.Or(trouble(x)-trouble(y), strings.Compare(x.HostName, y.HostName), strings.Compare(x.ID, y.ID))
	}
	var column func(x, y *agent) int
	switch q.sort {
	case "name":
		column = func(x, y *agent) int { return strings.Compare(x.HostName, y.HostName) }
	case "version":
		column = func(x, y *agent) int { return strings.Compare(x.AgentVersion, y.AgentVersion) }
	case "system":
		column = func(x, y *agent) int { return strings.Compare(x.system(), y.system()) }
	case "builds":
		column = func(x, y *agent) int { return len(x.builds) - len(y.builds) }
	case "seen":
		column = func(x, y *agent) int { return x.seen.Compare(y.seen) }
	case "status":
		column = func(x, y *agent) int { return trouble(x) - trouble(y) }
	default:
		return rest
	}
	return func(x, y *agent) int {
		by := column(x, y)
		if q.down {
			by = -by
		}
		return cmp.Or(by, rest(x, y))
	}
}

// trouble sorts agents: those that are offline first, those that never started last.
func trouble(a *agent) int {
	switch a.Status {
	case wire.ImportException:
		return 0
	case wire.ImportOK:
		return 1
	}
	return 2
}

// pageOneAgent is GET /page/agents/{id}: an agent and its past.
func (s *Server) pageOneAgent(w http.ResponseWriter, r *http.Request) {
	info, err := s.FindAgent(r.PathValue("id"))
	if err != nil {
		operatorError(w, err)
		return
	}
	now := time.Now()
	s.mu.Lock()
	past := []Minute{}
	if a := s.agents[info.ID]; a != nil {
		past = a.past.list()
		info.SeenAt = a.seenAt(now)
	}
	s.mu.Unlock()
	info = caller{Role: RoleReader}.shown(info) // the page has no use for what may be secret
	apiAnswer(w, http.StatusOK, map[string]any{"now": millis(now), "agent": info, "past": past})
}

// pageBuilds is GET /page/builds?agent=ID: the newest builds of an agent, of the last that there were.
func (s *Server) pageBuilds(w http.ResponseWriter, r *http.Request) {
	agent := r.URL.Query().Get("agent")
	list := []Build{}
	var found []*build
	err := s.store.each(func(scan func(...any) error) error {
		b, err := s.scanBuild(scan, time.Time{})
		found = append(found, b)
		return err
	}, `SELECT spec, doc FROM build WHERE number > (SELECT coalesce(max(number), 0) FROM build) - ? AND json_extract(doc, '$.agent') = ?
		ORDER BY number DESC LIMIT ?`, searchBuilds, agent, shownBuilds)
	s.mu.Lock()
	for _, b := range found {
		if live := s.builds[b.ID]; live != nil {
			b = live
		}
		list = append(list, b.view())
	}
	s.mu.Unlock()
	reply(w, list, err)
}

// pageBuild is GET /page/builds/{id}: a build, what it was made from without its sensitive values, and how many lines
// its log has.
func (s *Server) pageBuild(w http.ResponseWriter, r *http.Request) {
	b, err := s.find(r.PathValue("id"))
	if err != nil {
		operatorError(w, err)
		return
	}
	lines, err := s.store.lineCount(b.Number)
	s.mu.Lock()
	view, spec := s.seen(b), b.spec
	s.mu.Unlock()
	shown := map[string]any{"build": view, "lines": lines, "now": millis(time.Now())}
	if callerOf(r).Role.may(RoleOperator) {
		spec.Variables = maps.Clone(spec.Variables)
		for name, v := range spec.Variables {
			if v.Sensitive {
				v.Value = ""
				spec.Variables[name] = v
			}
		}
		shown["spec"] = spec // scripts may have secrets in them: whoever may submit may see them
	}
	reply(w, shown, err)
}

// escapes are sequences for terminals: colours, cursor moves, titles and links.
var escapes = regexp.MustCompile(`(?:\x1b\[|\x{9b})[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?|[\x00-\x08\x0b-\x1f\x7f\x{80}-\x{9f}]`)

// pageLogText is GET /page/builds/{id}/log.txt: the log as a text file, without sequences for terminals.
func (s *Server) pageLogText(w http.ResponseWriter, r *http.Request) {
	b, err := s.find(r.PathValue("id"))
	if err != nil {
		operatorError(w, err)
		return
	}
	attachment(w, fmt.Sprintf("build-%d.txt", b.Number))
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := bufio.NewWriter(w)
	defer func() { _ = out.Flush() }() // a client that has gone cannot be told so
	for after := int64(0); ; {
		lines, err := s.store.readLog(b.Number, after, logPage)
		if err != nil {
			s.log.Error("A log could not be read", "build", b.ID, "err", err)
			panic(http.ErrAbortHandler) // the client must not take a part for the whole
		}
		for i := range lines {
			if _, err := out.WriteString(escapes.ReplaceAllString(lines[i].Message, "") + "\n"); err != nil {
				return
			}
			after = lines[i].Seq
		}
		if len(lines) < logPage {
			return
		}
	}
}
