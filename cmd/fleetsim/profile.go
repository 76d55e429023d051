package main

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/devops-agent/devops-agent/agent/rhythm"
	"github.com/devops-agent/devops-agent/controller"
)

// row is one line of the table of results.
type row struct {
	what, wanted, measured string
	met                    bool
	loose                  bool // wanted of 10,000 agents or an undisturbed machine: shown, and no reason to fail
}

// result is what one profile brought.
type result struct {
	name, title string
	note        string // what was done
	rows        []row
	tally       *tally
	meter       *meter
	faults      []string
	waiting     int // errors that the profile provoked itself
	paced       int
}

// profile is one way for a fleet to behave.
type profile struct {
	name, title string
	run         func(ctx context.Context, o options) (*result, error)
}

// profiles are all, in the order in which they run.
func profiles() []profile {
	return []profile{
		{"idle-split", "Idle, one endpoint per purpose", idle(split)},
		{"idle-ask", "Idle, one call every 5 s", idle(asking)},
		{"idle-wait", "Idle, held questions", idle(waiting)},
		{"builds", "Builds", builds},
		{"log", "Log lines", logLines},
		{"flapping", "A network that comes and goes, with builds", flapping},
		{"rollout", "A rollout with bad hosts", rollout},
		{"restart", "The controller is killed and is back later", restart},
	}
}

// callTimes is the row with the times of all calls.
const callTimes = "p99 of a call"

// latest are the rows that every profile has.
func (f *fleet) latest(t *tally, m *meter) []row {
	all := t.all()
	return []row{
		{callTimes, "≤ 250 ms", "p50 " + short(all.p50) + ", p90 " + short(all.p90) + ", p99 " + short(all.p99) + ", max " + short(all.max), all.p99 <= 250*time.Millisecond, true},
		{"memory of the controller (RSS)", "≤ 1 GB", fmt.Sprintf("%.0f MB", float64(m.mostBytes)/1e6), m.mostBytes <= 1_000_000_000, true},
		{"CPU of the controller, of the simulator, of everything else on the machine", "–", fmt.Sprintf("%.2f, %.2f, %.2f cores", m.cpu/m.took.Seconds(), m.own/m.took.Seconds(), m.others/m.took.Seconds()), true, true},
		{"connections at once", "–", fmt.Sprintf("%d of %d agents", m.mostConns, len(f.agents)), true, true},
	}
}

// finish gathers what every profile ends with.
func (f *fleet) finish(r *result, t *tally, m *meter) *result {
	t.stop()
	r.tally, r.meter, r.faults, r.paced = t, m, f.faults(t), t.paced
	for _, n := range t.waiting {
		r.waiting += n
	}
	seen := "0"
	if len(r.faults) > 0 {
		seen = fmt.Sprintf("%d kinds", len(r.faults))
	}
	if r.paced > 0 {
		seen += fmt.Sprintf(" (and %d asked to come later, 429)", r.paced)
	}
	r.rows = append(r.rows, row{"errors seen by an agent that the profile does not make itself", "0", seen, len(r.faults) == 0, false})
	return r
}

func idle(how manner) func(ctx context.Context, o options) (*result, error) {
	name := map[manner]string{split: "idle-split", asking: "idle-ask", waiting: "idle-wait"}[how]
	return func(ctx context.Context, o options) (r *result, err error) {
		f, err := newFleet(ctx, o, name)
		if err != nil {
			return nil, err
		}
		defer func() { err = joined(err, f.end()) }()
		if err := f.begin(ctx, how); err != nil {
			return nil, err
		}
		if !sleep(ctx, o.calm, nil) { // the loops have found their places
			return nil, context.Cause(ctx)
		}
		length := o.length
		if how == waiting && length >= 10*time.Second {
			// Whole rounds: with a part of one, what is seen depends on when the agents were started. Shorter is only a trial.
			length = max(rhythm.HoldWait, length.Truncate(rhythm.HoldWait))
		}
		t := f.count(nil)
		m, err := f.during(ctx, func(ctx context.Context) error {
			if !sleep(ctx, length, nil) {
				return context.Cause(ctx)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		t.stop()
		mean, most := t.perSecond()
		wanted := map[manner]string{split: fmt.Sprintf("≥ %.0f/s", 0.58*float64(o.agents)), asking: "–", waiting: fmt.Sprintf("≤ %.0f/s", 0.035*float64(o.agents))}[how]
		met := how == asking || how == split && mean >= 0.58*float64(o.agents) || how == waiting && mean > 0 && mean <= 0.035*float64(o.agents)
		r = &result{rows: []row{{"calls served", wanted, fmt.Sprintf("%.0f/s, at most %d in a second", mean, most), met, true}}}
		r.rows = append(r.rows, f.latest(t, m)...)
		return f.finish(r, t, m), nil
	}
}

func joined(err, end error) error {
	if err != nil {
		return err
	}
	return end
}

// builds: as many builds a minute as asked, each dispatched once.
func builds(ctx context.Context, o options) (r *result, err error) {
	f, err := newFleet(ctx, o, "builds")
	if err != nil {
		return nil, err
	}
	defer func() { err = joined(err, f.end()) }()
	f.job = task{lasts: time.Second, lines: 100}
	if err := f.begin(ctx, waiting); err != nil {
		return nil, err
	}
	if !sleep(ctx, o.calm, nil) {
		return nil, context.Cause(ctx)
	}
	t := f.count(nil)
	var list []controller.Build
	m, err := f.during(ctx, func(ctx context.Context) error {
		limited, done := context.WithTimeout(ctx, o.length)
		defer done()
		ids, err := f.submit(limited, o.builds, int(o.length.Minutes()*float64(o.builds))+1)
		if err == nil {
			list, err = f.builds(ctx, ids)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	t.stop()
	twice := 0
	for _, b := range list {
		if b.HandOuts != 1 {
			twice++
		}
	}
	handed := delays(list, func(b controller.Build) int64 { return b.QueuedAt }, func(b controller.Build) int64 { return b.HandedAt })
	begun := delays(list, func(b controller.Build) int64 { return b.QueuedAt }, func(b controller.Build) int64 { return b.StartedAt })
	r = &result{note: fmt.Sprintf("%d builds of 1 s and 100 lines, %d a minute.", len(list), o.builds), rows: []row{
		{"builds handed out more than once", "0", fmt.Sprint(twice), twice == 0, true},
		{"queued → handed out", "–", "p50 " + short(handed.p50) + ", p99 " + short(handed.p99) + ", max " + short(handed.max), true, true},
		{"queued → worker began", "–", "p50 " + short(begun.p50) + ", p99 " + short(begun.p99) + ", max " + short(begun.max), true, true},
	}}
	r.rows = append(r.rows, f.latest(t, m)...)
	return f.finish(r, t, m), nil
}

// logLines: workers that print as fast as they can.
func logLines(ctx context.Context, o options) (r *result, err error) {
	const workers = 16
	o.agents = max(workers, min(o.agents, 200))
	o.ramp = min(o.ramp, time.Second)
	f, err := newFleet(ctx, o, "log")
	if err != nil {
		return nil, err
	}
	defer func() { err = joined(err, f.end()) }()
	var over atomic.Bool
	f.job = task{batch: 1000, until: over.Load}
	if err := f.begin(ctx, waiting); err != nil {
		return nil, err
	}
	t := f.count(nil)
	var list []controller.Build
	var took time.Duration
	m, err := f.during(ctx, func(ctx context.Context) error {
		begun := time.Now()
		defer time.AfterFunc(min(o.length, 20*time.Second), func() { over.Store(true) }).Stop()
		ids, err := f.submit(ctx, 60_000, workers)
		if err == nil {
			list, err = f.builds(ctx, ids)
		}
		took = time.Since(begun)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.stop()
	lines := f.logged.Load()
	stored, err := f.stored(ctx, list)
	if err != nil {
		return nil, err
	}
	if stored != lines {
		f.complain("%d lines were acknowledged and %d are there", lines, stored)
	}
	speed := float64(lines) / took.Seconds()
	r = &result{note: fmt.Sprintf("%d workers that post 1,000 lines at a time, each as soon as the last were acknowledged: on disk. Of all %d lines each is there afterwards.", workers, lines), rows: []row{
		{"log lines a second", "≥ 50,000", fmt.Sprintf("%.0f", speed), speed >= 50_000, true},
	}}
	for _, row := range f.latest(t, m) {
		if row.what == callTimes {
			row.wanted, row.met = "–", true // they are as long as the disk needs for the lines before them
		}
		r.rows = append(r.rows, row)
	}
	return f.finish(r, t, m), nil
}

// stored counts the lines of builds in the controller.
func (f *fleet) stored(ctx context.Context, list []controller.Build) (lines int64, err error) {
	for _, b := range list {
		n, err := f.server.lines(ctx, b.ID)
		if err != nil {
			return 0, err
		}
		lines += n
	}
	return lines, nil
}

// flapping: every agent loses its network now and then, for a while, with what is under way; builds go on.
func flapping(ctx context.Context, o options) (r *result, err error) {
	f, err := newFleet(ctx, o, "flapping")
	if err != nil {
		return nil, err
	}
	defer func() { err = joined(err, f.end()) }()
	f.job = task{lasts: time.Second, lines: 50}
	if err := f.begin(ctx, waiting); err != nil {
		return nil, err
	}
	if !sleep(ctx, o.calm, nil) {
		return nil, context.Cause(ctx)
	}
	t := f.count(broken)
	var list []controller.Build
	back := time.Duration(0)
	m, err := f.during(ctx, func(ctx context.Context) error {
		limited, done := context.WithTimeout(ctx, o.length)
		defer done()
		for _, a := range f.agents {
			f.all.Go(func() { a.flap(limited) })
		}
		ids, err := f.submit(limited, o.builds/5, int(o.length.Minutes()*float64(o.builds/5))+1)
		if err != nil {
			return err
		}
		<-limited.Done()
		begun := time.Now()
		if list, err = f.builds(ctx, ids); err != nil {
			return err
		}
		err = f.online(ctx)
		back = time.Since(begun)
		return err
	})
	if err != nil {
		return nil, err
	}
	r = &result{note: fmt.Sprintf("Each agent loses its connections and its network for 1 s to 8 s, after 5 s to 30 s each time; %d builds meanwhile.", len(list)), rows: []row{
		{"all agents online, all builds over, after the network is quiet", "–", short(back), true, true},
	}}
	r.rows = append(r.rows, f.latest(t, m)...)
	return f.finish(r, t, m), nil
}

// flap takes the network away and gives it back until ctx ends.
func (a *agent) flap(ctx context.Context) {
	defer a.network.cut(false)
	for sleep(ctx, 5*time.Second+time.Duration(a.chance.Int64N(int64(25*time.Second))), nil) {
		a.network.cut(true)
		if !sleep(ctx, time.Second+time.Duration(a.chance.Int64N(int64(7*time.Second))), nil) {
			return
		}
		a.network.cut(false)
	}
}

// online waits until the controller sees all agents.
func (f *fleet) online(ctx context.Context) error {
	limit := time.Now().Add(3 * time.Minute)
	for {
		var list []controller.AgentInfo
		if err := f.server.do(ctx, "GET", "/agents", nil, &list); err != nil {
			return err
		}
		away := 0
		for _, a := range list {
			if a.Status != "IMPORT_OK" {
				away++
			}
		}
		if away == 0 {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%d of %d agents are not online", away, len(list))
		}
		if !sleep(ctx, 500*time.Millisecond, nil) {
			return context.Cause(ctx)
		}
	}
}

// rollout: a version to all agents, with bad machines among them; once with room for their failures, once without.
func rollout(ctx context.Context, o options) (r *result, err error) {
	f, err := newFleet(ctx, o, "rollout", "--upgrade-soak", "5s")
	if err != nil {
		return nil, err
	}
	defer func() { err = joined(err, f.end()) }()
	if err := f.begin(ctx, waiting); err != nil {
		return nil, err
	}
	bad := 0
	for _, a := range f.agents {
		if a.bad.Load() {
			bad++
		}
	}
	t := f.count(nil)
	var good, halted controller.RolloutInfo
	var took time.Duration
	m, err := f.during(ctx, func(ctx context.Context) (err error) {
		begun := time.Now()
		good, err = f.offer(ctx, "v2.0.0", len(f.agents)/100+5, bad)
		took = time.Since(begun)
		if err == nil && bad > 2 {
			for _, a := range f.agents { // now many are bad
				a.bad.Store(a.number%3 == 0)
			}
			halted, err = f.offer(ctx, "v3.0.0", 5, 1)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	done, failed := good.Counts[controller.Upgraded], good.Counts[controller.Faulty]
	r = &result{note: fmt.Sprintf("v2.0.0 to all, of which %d are bad; then v3.0.0, with which every third is, while 1 may fail.", bad), rows: []row{
		{"upgraded + failed = fleet", fmt.Sprint(len(f.agents)), fmt.Sprintf("%d + %d, state %s, in %s", done, failed, good.State, short(took)), done+failed == len(f.agents) && failed == bad, false},
	}}
	if bad > 2 {
		r.rows = append(r.rows, row{"the bad version halts by itself", "halted", fmt.Sprintf("%s: %s; %d have it", halted.State, halted.Reason, halted.Counts[controller.Upgraded]), halted.State == controller.Halted, false})
	}
	r.rows = append(r.rows, f.latest(t, m)...)
	return f.finish(r, t, m), nil
}

// offer makes a release, offers it to all and waits for its end: done, or halted.
func (f *fleet) offer(ctx context.Context, version string, canary, failures int) (info controller.RolloutInfo, err error) {
	var files []map[string]string
	for name, data := range release(version) {
		sum := digest(data)
		if err := f.server.do(ctx, "PUT", "/objects/"+sum, data, nil); err != nil {
			return info, err
		}
		files = append(files, map[string]string{"name": name, "sha256": sum})
	}
	if err := f.server.do(ctx, "POST", "/releases", map[string]any{"version": version, "files": files}, nil); err != nil {
		return info, err
	}
	if err := f.server.do(ctx, "POST", "/rollouts", map[string]any{"version": version, "canary": canary, "maxFailures": failures}, &info); err != nil {
		return info, err
	}
	path := fmt.Sprintf("/rollouts/%d", info.ID)
	for limit := time.Now().Add(6 * time.Minute); ; {
		if !sleep(ctx, time.Second, nil) {
			return info, context.Cause(ctx)
		}
		var list []controller.RolloutInfo
		if err := f.server.do(ctx, "GET", "/rollouts", nil, &list); err != nil {
			return info, err
		}
		i := slices.IndexFunc(list, func(r controller.RolloutInfo) bool { return r.ID == info.ID })
		if i < 0 {
			return info, fmt.Errorf("%s is gone", path)
		}
		info = list[i]
		if info.State == controller.Halted || info.State == controller.Done && info.Counts[controller.Waiting] == 0 {
			return info, nil
		}
		if time.Now().After(limit) {
			return info, fmt.Errorf("%s of %s is still %s: %v", path, version, info.State, info.Counts)
		}
	}
}

// longDown is a time after which the agents of a controller that is away try less often; before, they come back as fast as
// they ask.
const longDown = 2 * time.Minute

// restart: the controller is killed and comes back later; nobody does anything else meanwhile.
func restart(ctx context.Context, o options) (r *result, err error) {
	f, err := newFleet(ctx, o, "restart")
	if err != nil {
		return nil, err
	}
	defer func() { err = joined(err, f.end()) }()
	if err := f.begin(ctx, waiting); err != nil {
		return nil, err
	}
	if !sleep(ctx, o.calm, nil) {
		return nil, context.Cause(ctx)
	}
	if err := f.server.kill(); err != nil {
		return nil, err
	}
	if !sleep(ctx, o.down, nil) {
		return nil, context.Cause(ctx)
	}
	if err := f.server.start(ctx); err != nil {
		return nil, err
	}
	t := f.count(broken)
	back := time.Duration(0)
	m, err := f.during(ctx, func(ctx context.Context) error {
		if err := f.answered(ctx, t); err != nil {
			return err
		}
		back = time.Since(t.began)
		if !sleep(ctx, 10*time.Second, nil) {
			return context.Cause(ctx)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t.stop()
	most := t.mostAgents()
	share := 100 * float64(most) / float64(len(f.agents))
	wanted := "≤ 10 %"
	if o.down < longDown {
		wanted = "–"
	}
	r = &result{note: fmt.Sprintf("kill -9, %v away, then started again.", o.down), rows: []row{
		{"agents in the second that sees most of them", wanted, fmt.Sprintf("%d: %.1f %%", most, share), share <= 10 || o.down < longDown, true},
		{"all are back", "≤ 2 min", short(back), back <= 2*time.Minute, true},
	}}
	r.rows = append(r.rows, f.latest(t, m)...)
	return f.finish(r, t, m), nil
}

// answered waits until every agent was answered since t began.
func (f *fleet) answered(ctx context.Context, t *tally) error {
	for limit := time.Now().Add(5 * time.Minute); ; {
		away := 0
		for _, a := range f.agents {
			if a.last.Load() < 0 {
				away++
			}
		}
		if away == 0 {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%d of %d agents are not back %v after the start", away, len(f.agents), time.Since(t.began).Round(time.Second))
		}
		if !sleep(ctx, 100*time.Millisecond, nil) {
			return context.Cause(ctx)
		}
	}
}
