package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	gopsutil "github.com/shirou/gopsutil/v4/process"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/agent/host"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
)

const (
	// lookLimit bounds all that status does: a person waits for it, and what it looks at may hang.
	lookLimit = 2500 * time.Millisecond
	// talkLimit bounds the question to the agent: within the limit above, there is time to see who does not answer.
	talkLimit = 1500 * time.Millisecond
	// leastFree is the room below which an agent takes no builds.
	leastFree = 64 << 20
)

// look collects the facts about the agent of a home, all at once, and does without those that take too long.
func look(ctx context.Context, where located) *facts {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	f := &facts{now: time.Now(), goos: runtime.GOOS, home: where.home, command: where.command, asRoot: where.asRoot, keeper: service.KeeperNone}
	f.kept.ExitCode, f.kept.Restarts = -1, -1
	inst, err := service.Open(where.home)
	if err != nil {
		f.homeErr = err
		return f
	}
	f.owner = ownerOf(where.home)

	probes := map[string]func(context.Context) func(*facts){
		"the files of " + inst.Home:       func(context.Context) func(*facts) { return readFiles(inst) },
		"the agent":                       func(ctx context.Context) func(*facts) { return askAgent(ctx, inst) },
		"what keeps the agent alive":      func(ctx context.Context) func(*facts) { return askKeeper(ctx, inst) },
		"the file system of " + inst.Home: func(context.Context) func(*facts) { return measure(inst) },
		"the processes of this machine":   func(context.Context) func(*facts) { return findTwins(inst) },
	}
	type answer struct {
		name  string
		enter func(*facts)
	}
	answers := make(chan answer, len(probes)) // whoever is late writes into it and is gone
	for name, probe := range probes {
		go func() { answers <- answer{name, probe(ctx)} }()
	}
	for len(probes) > 0 {
		select {
		case a := <-answers:
			a.enter(f)
			delete(probes, a.name)
		case <-ctx.Done():
			for name := range probes {
				f.late = append(f.late, name)
			}
			slices.Sort(f.late)
			return f
		}
	}
	f.twins = slices.DeleteFunc(f.twins, func(p process) bool {
		return f.holder != nil && p.PID == f.holder.PID || f.agent != nil && p.PID == f.agent.PID
	})
	return f
}

// readFiles looks at what is in the home.
func readFiles(inst *service.Installation) func(*facts) {
	var got facts
	if _, err := os.ReadDir(inst.Home); err != nil {
		return func(f *facts) { f.homeErr = err }
	}
	cfg, err := config.LoadConfig(inst.Config)
	if err != nil {
		got.configErr = err
		cfg = &config.Config{Path: inst.Config}
	}
	how, err := cfg.Enrolment(func(string) string { return "" })
	got.willEnrol, got.enrollErr, got.enrollFiles = how != nil, err, cfg.EnrollFiles()
	settings, err := config.Peek(inst.Home, cfg)
	if err != nil {
		got.identityErr = err
	}
	_, got.certErr = config.Roots(inst.Home)
	if data, err := os.ReadFile(inst.Path(config.CertFile)); err == nil {
		got.expired = expired(data, time.Now())
	}
	got.words = lastWords(inst.Path("logs", "devopsAgent.log"), time.Now())
	return func(f *facts) {
		f.configErr, f.identityErr, f.certErr, f.willEnrol = got.configErr, got.identityErr, got.certErr, got.willEnrol
		f.enrollErr, f.enrollFiles = got.enrollErr, got.enrollFiles
		f.identity, f.gateway = settings.Identity.Agent, settings.Gateway
		f.expired, f.words = got.expired, got.words
	}
}

// expired names the certificates of a .cert file whose time is over.
func expired(data []byte, now time.Time) (names []string) {
	for len(data) > 0 {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return names
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err == nil && now.After(cert.NotAfter) {
			names = append(names, cert.Subject.String()+", on "+clock(cert.NotAfter))
		}
	}
	return names
}

// lastWords is the last line of a log that tells of an error, without its time. One that is older than an hour says
// nothing about what happens now.
func lastWords(path string, now time.Time) string {
	const enough = 64 << 10
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	data, err := io.ReadAll(io.NewSectionReader(file, max(0, info.Size()-enough), enough))
	if err != nil {
		return ""
	}
	lines := bytes.Split(data, []byte("\n"))
	for _, line := range slices.Backward(lines) {
		if at, words, ok := bytes.Cut(line, []byte("|ERROR|")); ok {
			then, err := time.ParseInLocation("2006-01-02 15:04:05.000", string(at), time.Local)
			if err != nil || now.Sub(then) > time.Hour {
				return ""
			}
			return string(words[:min(len(words), 300)])
		}
	}
	return ""
}

// askAgent asks the agent, and where it does not answer, the system who it is.
func askAgent(ctx context.Context, inst *service.Installation) func(*facts) {
	ctx, cancel := context.WithTimeout(ctx, talkLimit)
	defer cancel()
	var got facts
	var status control.Status
	got.agentErr = control.Call(ctx, inst.Home, string(service.RoleAgent), control.Request{Op: control.OpStatus}, &status)
	if got.agentErr == nil {
		got.agent, got.held = &status, true
		got.moved = status.Disk.Path != "" && !same(status.Disk.Path, inst.Home)
	}
	got.held, got.holder = holderOf(inst, got.agent)
	return func(f *facts) {
		f.agent, f.agentErr, f.moved, f.held, f.holder = got.agent, got.agentErr, got.moved, got.held, got.holder
	}
}

// holderOf says whether somebody has the role agent in a home, and who.
func holderOf(inst *service.Installation, agent *control.Status) (bool, *process) {
	path := inst.Path("runtime", "agent.lock")
	pid := lockOwner(path)
	switch {
	case agent != nil:
		pid = agent.PID
	case pid == 0 && !locked(path):
		return false, nil
	case pid == 0:
		// The kernel does not say. The pid file is believed when that process is an agent.
		data, err := os.ReadFile(inst.Path("runtime", "agent.pid"))
		if err != nil {
			return true, nil
		}
		pid, _ = strconv.Atoi(strings.TrimSpace(string(data)))
		if p := describe(pid); p == nil || !strings.HasPrefix(filepath.Base(p.Executable), "devopsAgent") {
			return true, nil
		}
	}
	return true, describe(pid)
}

// locked tries a lock for an instant. A file that is not there is not made.
func locked(path string) bool {
	if _, err := os.Stat(path); err != nil {
		return false
	}
	probe := flock.New(path, flock.SetFlag(os.O_RDONLY))
	got, err := probe.TryRLock()
	if got {
		_ = probe.Unlock()
	}
	return !got && err == nil
}

// describe asks the system about a process; nil when there is none.
func describe(pid int) *process {
	if pid <= 0 {
		return nil
	}
	p, err := gopsutil.NewProcess(int32(pid)) //nolint:gosec // pids fit
	if err != nil {
		return nil
	}
	got := &process{PID: pid}
	got.Executable, _ = p.Exe()
	got.User, _ = p.Username()
	if ms, err := p.CreateTime(); err == nil && ms > 0 {
		began := time.UnixMilli(ms)
		got.Since = &began
	}
	if words, err := p.Status(); err == nil {
		got.halted = slices.Contains(words, gopsutil.Stop)
	}
	return got
}

// findTwins looks for agents of this machine that have the identity of this home and another directory.
func findTwins(inst *service.Installation) func(*facts) {
	mine, err := config.Peek(inst.Home, &config.Config{})
	if err != nil {
		return func(*facts) {}
	}
	var twins []process
	for pid, dir := range directories() {
		if same(dir, inst.Home) {
			continue
		}
		theirs, err := config.Peek(dir, &config.Config{})
		if err != nil || theirs.Identity.Agent != mine.Identity.Agent || theirs.Identity.Project != mine.Identity.Project {
			continue
		}
		if p := describe(pid); p != nil && locked(filepath.Join(dir, "runtime", "agent.lock")) {
			p.Dir = dir
			twins = append(twins, *p)
		}
	}
	return func(f *facts) { f.twins = twins }
}

func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return a == b
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// measure asks the file system.
func measure(inst *service.Installation) func(*facts) {
	kind, _ := inst.NetworkFS()
	free, err := host.FreeBytes(inst.Home)
	if err != nil {
		return func(f *facts) { f.network = kind }
	}
	readOnly := host.ReadOnly(inst.Home)
	return func(f *facts) {
		f.network, f.readOnly, f.disk = kind, readOnly, &control.Disk{Path: inst.Home, Free: free, Needed: leastFree}
	}
}

// askKeeper asks what is registered to keep the agent alive.
func askKeeper(ctx context.Context, inst *service.Installation) func(*facts) {
	keeper, err := service.Of(inst)
	switch {
	case errors.Is(err, service.ErrNoKeeper) || err == nil && keeper == nil:
		return func(*facts) {}
	case err != nil:
		return func(f *facts) { f.keeperErr = err }
	}
	got := facts{keeper: keeper.Keeper(), name: keeper.Name()}
	got.kept, got.keeperErr = keeper.State(ctx)
	var daemon control.DaemonStatus
	err = control.Call(ctx, inst.Home, string(service.RoleDaemon), control.Request{Op: control.OpStatus}, &daemon)
	if err == nil {
		got.daemon = &daemon
	}
	return func(f *facts) {
		f.keeper, f.name, f.kept, f.keeperErr, f.daemon = got.keeper, got.name, got.kept, got.keeperErr, got.daemon
	}
}

// ownerOf is the account that a directory belongs to, "" when that cannot be told.
func ownerOf(path string) string {
	uid, ok := ownerID(path)
	if !ok {
		return ""
	}
	account, err := user.LookupId(uid)
	if err != nil {
		return "the account " + uid
	}
	return account.Username
}

// denied reports whether an error means that this account may not.
func denied(err error) bool { return errors.Is(err, fs.ErrPermission) }
