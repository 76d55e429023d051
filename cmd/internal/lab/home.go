package lab

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Home is an install tree of an agent (protocol §2.1), with a stub in place of java and upgrader.
type Home struct {
	Dir     string // the tree
	Lab     string // beside it: what the stubs are told and what they write down
	User    string // $HOME of the agent: profile files go here
	Project string
	Agent   string
	Secret  string

	t        T
	programs Programs
	gates    []*os.File
}

// HomeOptions shape a home. The zero value of a field means the default that is named.
type HomeOptions struct {
	Name    string            // of the directory, "agent"
	Gateway string            // landun.gateway
	Mode    string            // protocol in agent.toml; "" leaves the choice to the agent
	Set     map[string]string // properties on top of the usual ones
	Drop    []string          // properties left out
	File    string            // the whole text of .agent.properties instead; placeholders are not filled in
	TOML    string            // more lines of agent.toml
	JDK     string            // folder of the stub java in the tree, "jdk"; "-" means none
	NoJar   bool              // no worker-agent.jar
	Worker  string            // a native worker to put there, as devopsWorker
	Program string            // the agent, Programs.Agent
}

// Properties returns the usual content of .agent.properties, in the order of protocol §2.2.
func (h *Home) properties(gateway string) [][2]string {
	return [][2]string{
		{"devops.project.id", h.Project}, {"devops.agent.id", h.Agent}, {"devops.agent.secret.key", h.Secret},
		{"landun.gateway", gateway}, {"landun.fileGateway", "http://files.lab.invalid"},
		{"devops.parallel.task.count", "4"}, {"landun.env", "PROD"}, {"devops.agent.collectorOn", "false"},
		{"devops.agent.detect.shell", "false"}, {"devops.language", "zh_CN"},
	}
}

// NewHome prepares an install tree. The processes that carry its LAB_DIR are killed when the test ends.
func NewHome(t T, p Programs, o HomeOptions) *Home {
	t.Helper()
	root := t.TempDir()
	name := o.Name
	if name == "" {
		name = "agent"
	}
	h := &Home{Dir: filepath.Join(root, name), Lab: filepath.Join(root, "lab"), User: filepath.Join(root, "user"),
		Project: "lab", Agent: "ag" + randomHex(4), Secret: "s3cr3t" + randomHex(13), t: t, programs: p}
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("prepare a home: %v", err)
		}
	}
	// Other accounts must get through to the tree: builds can run as one.
	for _, dir := range []string{filepath.Dir(root), root} {
		info, err := os.Stat(dir)
		fail(err)
		if open := info.Mode() | 0o055; open != info.Mode() { // it may be /tmp, which has rights of its own
			fail(os.Chmod(dir, open)) //nolint:gosec // see above
		}
	}
	for _, dir := range []string{h.Dir, h.Lab, h.User, filepath.Join(h.Lab, "runs")} {
		fail(os.MkdirAll(dir, 0o755)) //nolint:gosec // see above
	}
	fail(os.Chmod(h.Lab, 0o777))                        //nolint:gosec // the stub writes here, as whoever it is
	fail(os.Chmod(filepath.Join(h.Lab, "runs"), 0o777)) //nolint:gosec // same
	fail(os.WriteFile(filepath.Join(h.Lab, "java.version"), []byte(JDKLines), 0o644))
	fail(os.WriteFile(filepath.Join(h.Lab, "java.calls"), nil, 0o666))
	fail(os.Chmod(filepath.Join(h.Lab, "java.calls"), 0o666)) //nolint:gosec // same

	program := o.Program
	if program == "" {
		program = p.Agent
	}
	if program != "" {
		fail(place(program, h.Path("devopsAgent"+exeSuffix())))
	}
	fail(place(filepath.Join(p.stubs, "upgrader"), h.Path("tmp", "upgrader")))
	if o.JDK == "" {
		o.JDK = "jdk"
	}
	if o.JDK != "-" {
		h.AddJDK(o.JDK)
	}
	if !o.NoJar {
		h.Write("worker-agent.jar", WorkerVersion+"\n")
	}
	if o.Worker != "" {
		fail(place(o.Worker, h.Path("devopsWorker"+exeSuffix())))
	}

	text := o.File
	if text == "" {
		list := h.properties(o.Gateway)
		set := maps.Clone(o.Set)
		for i, entry := range list {
			if value, ok := set[entry[0]]; ok {
				list[i][1] = value
				delete(set, entry[0])
			}
		}
		for _, key := range slices.Sorted(maps.Keys(set)) {
			list = append(list, [2]string{key, set[key]})
		}
		var b strings.Builder
		for _, entry := range list {
			if !slices.Contains(o.Drop, entry[0]) {
				fmt.Fprintf(&b, "%s=%s\n", entry[0], entry[1])
			}
		}
		text = b.String()
	}
	h.Write(".agent.properties", text)
	toml := o.TOML
	if o.Mode != "" {
		toml = fmt.Sprintf("protocol = %q\n", o.Mode) + toml
	}
	if toml != "" {
		h.Write("agent.toml", toml)
	}
	t.Cleanup(func() {
		for _, gate := range h.gates {
			_ = gate.Close()
		}
		KillMarked("LAB_DIR=" + h.Lab)
	})
	return h
}

// AddJDK puts the stub java into <home>/<folder>/bin.
func (h *Home) AddJDK(folder string) {
	h.t.Helper()
	h.AddJDKAt(h.Path(folder))
}

// AddJDKAt puts the stub java into <dir>/bin.
func (h *Home) AddJDKAt(dir string) {
	h.t.Helper()
	if err := place(filepath.Join(h.programs.stubs, "java"), filepath.Join(dir, "bin", "java")); err != nil {
		h.t.Fatalf("add a JDK: %v", err)
	}
}

// Path joins a path below the tree.
func (h *Home) Path(parts ...string) string {
	return filepath.Join(append([]string{h.Dir}, parts...)...)
}

// LabPath joins a path below the lab's own directory.
func (h *Home) LabPath(parts ...string) string {
	return filepath.Join(append([]string{h.Lab}, parts...)...)
}

// Write makes a file in the tree.
func (h *Home) Write(name, text string) {
	h.t.Helper()
	h.write(h.Path(name), text)
}

func (h *Home) write(path, text string) {
	h.t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755) //nolint:gosec // an install tree
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644) //nolint:gosec // as the original's package has it
	}
	if err != nil {
		h.t.Fatalf("write into a home: %v", err)
	}
}

// Aged makes a file in the tree that was last modified so long ago.
func (h *Home) Aged(name string, age time.Duration) string {
	h.t.Helper()
	h.Write(name, "aged\n")
	h.Age(name, age)
	return h.Path(name)
}

// Age sets back the modification time of a file or directory in the tree.
func (h *Home) Age(name string, age time.Duration) {
	h.t.Helper()
	past := time.Now().Add(-age)
	if err := os.Chtimes(h.Path(name), past, past); err != nil {
		h.t.Fatalf("age a file: %v", err)
	}
}

// Has reports whether a path below the tree exists.
func (h *Home) Has(name string) bool {
	_, err := os.Lstat(h.Path(name))
	return err == nil
}

// Property returns a value of .agent.properties, "" when it is not there.
func (h *Home) Property(key string) string { return h.ReadProperties()[key] }

// ReadProperties reads .agent.properties the way a worker does: key=value lines, comments by #.
func (h *Home) ReadProperties() map[string]string {
	data, err := os.ReadFile(h.Path(".agent.properties"))
	if err != nil {
		return nil
	}
	return ParseProperties(data)
}

// ParseProperties reads key=value lines; blanks around both are dropped, # begins a comment.
func ParseProperties(data []byte) map[string]string {
	found := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			found[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	return found
}

// Work sets what the stub worker does for one job, in shell; for every job when b is nil. Variables: $run, $error, $key,
// $lab; `gate` waits for Release; `code=N` sets the exit code.
func (h *Home) Work(b *Build, script string) {
	h.t.Helper()
	name := "work"
	if b != nil {
		name += "." + b.Key()
	}
	h.write(h.LabPath(name), script+"\n")
}

// Die makes the stub worker of a job kill itself before it empties the error file.
func (h *Home) Die(b Build) {
	h.t.Helper()
	h.write(h.LabPath("die."+b.Key()), "")
}

// Gate prepares a job's gate and returns the function that opens it. Without Work the worker of the job does nothing but
// wait there.
func (h *Home) Gate(b Build) (open func()) {
	h.t.Helper()
	if _, err := os.Stat(h.LabPath("work." + b.Key())); err != nil {
		h.Work(&b, "gate")
	}
	dir := h.LabPath("runs", b.Key())
	if err := os.MkdirAll(dir, 0o777); err != nil {
		h.t.Fatalf("make a gate: %v", err)
	}
	_ = os.Chmod(dir, 0o777) //nolint:gosec // the worker may be another account
	pipe, err := openGate(filepath.Join(dir, "gate"))
	if err != nil {
		h.t.Fatalf("make a gate: %v", err)
	}
	h.gates = append(h.gates, pipe)
	return func() { _, _ = pipe.WriteString("go\n") }
}

// Run is what the stub worker of one job wrote down.
type Run struct {
	dir string
}

// Run returns the record of a job's worker.
func (h *Home) Run(b Build) Run { return Run{dir: h.LabPath("runs", b.Key())} }

// File returns one of the record's files, "" when it does not exist.
func (r Run) File(name string) string {
	data, _ := os.ReadFile(filepath.Join(r.dir, name))
	return string(data)
}

// Lines returns one of the record's files in lines.
func (r Run) Lines(name string) []string { return strings.Fields(strings.TrimSpace(r.File(name))) }

// Starts returns how often a worker was started for the job.
func (r Run) Starts() int { return len(r.Lines("pids")) }

// Pid returns the process id of the last worker of the job, 0 when there was none.
func (r Run) Pid() int {
	pids := r.Lines("pids")
	if len(pids) == 0 {
		return 0
	}
	pid, _ := strconv.Atoi(pids[len(pids)-1])
	return pid
}

// Began returns when the worker had emptied the error file and began, zero when it has not.
func (r Run) Began() time.Time { return r.stamp("began") }

// Ended returns when the worker ended by itself, zero when it has not.
func (r Run) Ended() time.Time { return r.stamp("ended") }

func (r Run) stamp(name string) time.Time {
	seconds, nanos, ok := strings.Cut(strings.TrimSpace(r.File(name)), ".")
	s, err := strconv.ParseInt(seconds, 10, 64)
	if !ok || err != nil {
		return time.Time{}
	}
	n, _ := strconv.ParseInt(nanos, 10, 64)
	return time.Unix(s, n)
}

// Env returns the environment of the worker.
func (r Run) Env() map[string]string {
	env := map[string]string{}
	for entry := range strings.SplitSeq(strings.TrimSuffix(r.File("env"), "\x00"), "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		env[name] = value
	}
	return env
}

// Args returns the arguments of the worker's java.
func (r Run) Args() []string {
	text := strings.TrimSuffix(r.File("args"), "\x00")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\x00")
}

// WaitBegan waits until a job's worker has begun.
func (h *Home) WaitBegan(limit time.Duration, b Build) bool {
	return Eventually(limit, func() bool { return !h.Run(b).Began().IsZero() })
}

// UpgraderCall is one start of tmp/upgrader.
type UpgraderCall struct {
	Args []string
	Dir  string
}

// UpgraderCalls returns the completed starts of the upgrader stub.
func (h *Home) UpgraderCalls() []UpgraderCall {
	data, _ := os.ReadFile(h.LabPath("upgrader.calls"))
	var calls []UpgraderCall
	var call UpgraderCall
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		switch word, rest, _ := strings.Cut(line, " "); word {
		case "arg":
			call.Args = append(call.Args, rest)
		case "cwd":
			call.Dir = rest
		case "end":
			calls = append(calls, call)
			call = UpgraderCall{}
		}
	}
	return calls
}

// Log returns everything under logs/, file after file.
func (h *Home) Log() string {
	var b strings.Builder
	names, _ := filepath.Glob(h.Path("logs", "*"))
	for _, name := range names {
		data, _ := os.ReadFile(name)
		b.Write(data)
	}
	return b.String()
}

// FindSecret returns the files below logs/ and the lab's directory (standard output and error are there) that hold a text.
// The records of worker runs are left out: what a worker may see is not for this question.
func (h *Home) FindSecret(secret string) []string {
	var found []string
	for _, top := range []string{h.Path("logs"), h.Lab} {
		_ = filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
			if err != nil || path == h.LabPath("runs") {
				if entry != nil && entry.IsDir() && err == nil {
					return filepath.SkipDir
				}
				return nil
			}
			if !entry.Type().IsRegular() {
				return nil
			}
			if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(secret)) {
				found = append(found, path)
			}
			return nil
		})
	}
	return found
}

// Remove removes a file of the home.
func (h *Home) Remove(name string) {
	h.t.Helper()
	if err := os.Remove(h.Path(name)); err != nil {
		h.t.Fatalf("prepare a home: %v", err)
	}
}
