package host

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// Versions are what the server compares with its own parts (protocol §1.6.3, §1.6.4).
type Versions struct {
	Worker string   // "" when it could not be found out
	JDK    []string // three lines; empty, never nil, when there is no JDK that works
	// Known reports that both belong to the files that are there now. Without it they are old or empty: good enough
	// for a heartbeat, but an upgrade check must not be sent, because the server would order what is not missing.
	Known bool
}

// Limits of one probe.
const (
	probeLimit  = 30 * time.Second
	maxOutput   = 64 << 10
	maxRecord   = 64 << 10         // of runtime/versions.json
	triesNeeded = 3                // failures in a row before a JDK or worker counts as broken
	retrySoon   = 5 * time.Second  // doubles each time
	retryLater  = 10 * time.Minute // of something broken: memory may have been short
)

// RunFunc starts a program in a directory, waits for it, and returns what it wrote to both outputs.
type RunFunc func(ctx context.Context, dir, name string, args ...string) ([]byte, error)

// Prober knows the versions of the JDK and of the worker in a home directory. What it learned is kept in
// runtime/versions.json together with the identity of the files it was learned from, so that a restart costs nothing.
type Prober struct {
	Programs string // directory of the native worker where home has none, "" for no other

	home string
	goos string
	run  RunFunc
	log  *slog.Logger
	kick chan struct{} // something is to be probed; holds one

	mu     sync.Mutex
	wanted parts  // what the last Get saw
	jdk    result // the newest findings
	worker result
}

// parts are the files whose versions are asked for, with their identities.
type parts struct {
	java, javaFlag string // "" when there is no JDK
	jdkIdentity    string
	worker         string // jar or program, "" when there is neither
	jar            bool
	workerIdentity string
}

// result is one finding.
type result struct {
	Identity string   `json:"identity"` // of the files, see fileIdentity
	Lines    []string `json:"lines"`    // of the JDK, or one line: the worker's version
	tries    int      // failures in a row with this identity
	sure     bool     // the finding counts
}

// NewProber makes a prober for a home directory and loads what an earlier one learned. run is [Exec] but for tests.
func NewProber(home string, run RunFunc, log *slog.Logger) *Prober {
	p := &Prober{home: home, goos: runtime.GOOS, run: run, log: log, kick: make(chan struct{}, 1)}
	p.load()
	return p
}

// Get returns the versions for the JDK directories in force: those of JDK 17 where there is one, else of JDK 8. It
// never waits; when it does not know, Run looks in the background.
func (p *Prober) Get(jdkDir, jdk17Dir string) Versions {
	now := p.look(jdkDir, jdk17Dir)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = now
	untried := false // what was tried and failed has its own pace, see Run
	v := Versions{JDK: slices.Clone(p.jdk.Lines), Known: true}
	if len(p.worker.Lines) > 0 {
		v.Worker = p.worker.Lines[0]
	}
	switch {
	case now.java == "":
		v.JDK = nil
	case !p.jdk.fits(now.jdkIdentity):
		v.Known = false
		untried = untried || p.jdk.Identity != now.jdkIdentity
	}
	switch {
	case now.worker == "" || now.jar && now.java == "":
		v.Worker = ""
	case !p.worker.fits(now.workerIdentity):
		v.Known = false
		untried = untried || p.worker.Identity != now.workerIdentity
	}
	if v.JDK == nil {
		v.JDK = []string{}
	}
	if untried {
		select {
		case p.kick <- struct{}{}:
		default:
		}
	}
	return v
}

func (r result) fits(identity string) bool { return r.sure && r.Identity == identity }

// look finds the files whose versions matter now. It costs a handful of stat calls.
func (p *Prober) look(jdkDir, jdk17Dir string) parts {
	var now parts
	for _, jdk := range []struct{ dir, flag string }{{jdk17Dir, "--version"}, {jdkDir, "-version"}} {
		if jdk.dir == "" {
			continue
		}
		java := JavaPath(jdk.dir, p.goos)
		if id := fileIdentity(java); id != "" {
			release := filepath.Join(filepath.Dir(filepath.Dir(java)), "release")
			now.java, now.javaFlag, now.jdkIdentity = java, jdk.flag, id+";"+fileIdentity(release)
			break
		}
	}
	native := "devopsWorker"
	if p.goos == "windows" {
		native += ".exe"
	}
	jar, native := filepath.Join(p.home, "worker-agent.jar"), filepath.Join(p.home, native)
	if id := fileIdentity(jar); id != "" {
		now.worker, now.jar, now.workerIdentity = jar, true, id+";"+now.jdkIdentity
	} else if id := fileIdentity(native); id != "" {
		now.worker, now.workerIdentity = native, id
	} else if p.Programs != "" {
		native = filepath.Join(p.Programs, filepath.Base(native))
		if id := fileIdentity(native); id != "" {
			now.worker, now.workerIdentity = native, id
		}
	}
	return now
}

// fileIdentity changes whenever a file is replaced or written: path, size, time and inode. It is "" when there is no
// such file.
func fileIdentity(path string) string {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	return strings.Join([]string{path, strconv.FormatInt(info.Size(), 10), strconv.FormatInt(info.ModTime().UnixNano(), 10),
		strconv.FormatUint(inode(info), 10)}, "|")
}

// Run probes in the background whenever Get has seen something new, until ctx ends. It returns the cause of that.
func (p *Prober) Run(ctx context.Context) error {
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.kick:
		case <-retry.C:
		}
		retry.Stop()
		if again := p.probe(ctx); again > 0 {
			retry.Reset(again)
		}
	}
}

// probe looks at what the last Get wanted and returns when to look again, 0 for not at all.
func (p *Prober) probe(ctx context.Context) (again time.Duration) {
	p.mu.Lock()
	now, jdk, worker := p.wanted, p.jdk, p.worker
	p.mu.Unlock()
	learned := false
	if now.java != "" && !jdk.good(now.jdkIdentity) {
		jdk = p.try(ctx, jdk, now.jdkIdentity, "JDK", jdkLines, now.java, now.javaFlag)
		learned = learned || jdk.tries == 0
		again = soonest(again, jdk.again())
	}
	if now.worker != "" && (!now.jar || now.java != "") && !worker.good(now.workerIdentity) {
		name, args, parse := now.worker, []string{"version"}, nativeVersion
		if now.jar {
			name, parse = now.java, jarVersion
			args = []string{"-Djava.io.tmpdir=" + filepath.Join(p.home, "build_tmp"), "-Xmx256m", "-cp", now.worker,
				workerClass}
		}
		lines := func(output string) []string { return []string{parse(output)} }
		worker = p.try(ctx, worker, now.workerIdentity, "worker", lines, name, args...)
		learned = learned || worker.tries == 0
		again = soonest(again, worker.again())
	}
	if ctx.Err() != nil {
		return 0
	}
	p.mu.Lock()
	p.jdk, p.worker = jdk, worker
	p.mu.Unlock()
	if learned {
		p.save(jdk, worker)
	}
	return again
}

// good reports that there is nothing left to find out.
func (r result) good(identity string) bool { return r.fits(identity) && r.tries == 0 }

func (r result) again() time.Duration {
	switch {
	case r.tries == 0:
		return 0
	case r.sure:
		return retryLater
	}
	return min(retrySoon<<min(r.tries-1, 10), retryLater)
}

func soonest(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// try runs one program. A failure leaves the old finding until it has repeated itself; one by time, signal or for want of
// memory or descriptors says nothing about the files and never counts.
func (p *Prober) try(ctx context.Context, old result, identity, what string, parse func(string) []string, name string, args ...string) result {
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	output, err := p.run(limited, p.home, name, args...)
	if ctx.Err() != nil {
		return old
	}
	if err == nil {
		lines := parse(string(output))
		p.log.Info("Version found", "part", what, "version", strings.Join(lines, " / "), "after", time.Since(began).Round(time.Millisecond))
		return result{Identity: identity, Lines: lines, sure: true}
	}
	if old.Identity != identity {
		old = result{Identity: identity, Lines: old.Lines}
	}
	old.tries++
	if old.tries == 1 || old.tries == triesNeeded {
		p.log.Warn("Version not found, another try follows", "part", what, "path", name, "err", err, "output", lastLine(output))
	}
	if old.tries >= triesNeeded && !inconclusive(limited, err) {
		old.sure, old.Lines = true, nil
	}
	return old
}

// inconclusive reports that a program did not end by itself, or that the machine had nothing left to start it with.
func inconclusive(ctx context.Context, err error) bool {
	for _, lack := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN} {
		if errors.Is(err, lack) {
			return true
		}
	}
	var exit *exec.ExitError
	return ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &exit) && exit.ExitCode() < 0
}

func lastLine(output []byte) string {
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	return clip(lines[len(lines)-1], 200)
}

// record is runtime/versions.json. Nobody but Prober reads it.
type record struct {
	JDK    result `json:"jdk"`
	Worker result `json:"worker"`
}

func (p *Prober) recordPath() string { return filepath.Join(p.home, "runtime", "versions.json") }

func (p *Prober) load() {
	f, err := os.Open(p.recordPath())
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	var r record
	if json.NewDecoder(io.LimitReader(f, maxRecord)).Decode(&r) != nil {
		return // it will be written anew
	}
	clean := func(r result, n int) result {
		if len(r.Lines) != n || r.Identity == "" {
			return result{}
		}
		for i, line := range r.Lines {
			r.Lines[i] = clip(line, 200)
		}
		r.sure = true
		return r
	}
	p.jdk, p.worker = clean(r.JDK, 3), clean(r.Worker, 1)
}

// save writes down what is certain. Without it, the next start probes again: a nuisance, not an error.
func (p *Prober) save(jdk, worker result) {
	var r record
	if jdk.sure && jdk.tries == 0 {
		r.JDK = jdk
	}
	if worker.sure && worker.tries == 0 && len(worker.Lines) == 1 && worker.Lines[0] != "" {
		r.Worker = worker
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(p.recordPath()), 0o755)
	}
	if err == nil {
		err = swap.WriteFile(p.recordPath(), data, 0o600)
	}
	if err != nil {
		p.log.Warn("Versions are not remembered", "path", p.recordPath(), "err", err)
	}
}

// Exec runs a program and keeps the first 64 KiB of its output, both streams together. The error of a program that
// took longer than ctx allows is that of ctx.
func Exec(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	if !filepath.IsAbs(name) {
		return nil, &fs.PathError{Op: "exec", Path: name, Err: fs.ErrInvalid}
	}
	var out head
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	cmd.WaitDelay = 2 * time.Second // a grandchild may hold the pipe
	err := cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return out.text, err
}

// head keeps the beginning of what is written to it.
type head struct{ text []byte }

func (h *head) Write(b []byte) (int, error) {
	h.text = append(h.text, b[:min(len(b), maxOutput-len(h.text))]...)
	return len(b), nil
}
