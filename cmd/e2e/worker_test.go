//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func workerScenarios() []scenario {
	list := []scenario{
		both("one good build", goodBuild, 3, 21, 40, 48, 49, 50, 51, 52, 53, 55, 56, 58, 62, 66, 70, 78, 11, 1, 4),
		both("workdir with blanks", oddWorkdir("a work dir"), 54),
		both("workdir with shell characters", oddWorkdir(`it's $HOME;x&y (ü) "q"`), 54),
		both("own shell", ownShell, 51, 50),
		both("fast workers", fastWorkers, 56, 57),
	}
	if os.Getuid() == 0 {
		list = append(list, both("another account", otherAccount, 55, 52))
	}
	if _, err := os.Stat("/bin/tcsh"); err == nil {
		list = append(list, both("tcsh", tcsh, 50))
	}
	return list
}

// writeProfile makes a file that only a login shell reads.
func writeProfile(w *world, script string) {
	if err := os.WriteFile(filepath.Join(w.home.User, ".bash_profile"), []byte(script+"\n"), 0o644); err != nil { //nolint:gosec // a profile
		w.Fatalf("write a profile: %v", err)
	}
}

// goodBuild runs one job for 25 s and looks at it from every side.
func goodBuild(s *S) {
	set := map[string]string{}
	rec := lab.NewRecorder(s, lab.RecorderOptions{Strict: true})
	w := s.worldOn(rec, lab.HomeOptions{Gateway: rec.Host, Set: set}) // no scheme
	// The configured JDK is outside of the tree, the one inside would be wrong.
	jdk := filepath.Join(filepath.Dir(w.home.Dir), "java elsewhere")
	w.home.AddJDKAt(jdk)
	key := "devops.agent.jdk.dir.path"
	if s.mode == "ask" {
		key = "devops.agent.jdk17.dir.path"
	}
	properties, _ := os.ReadFile(w.home.Path(".agent.properties"))
	w.home.Write(".agent.properties", string(properties)+key+"="+jdk+"\n")
	writeProfile(w, "export LAB_PROFILE=read")

	const day = 24 * time.Hour
	gone := []string{w.home.Aged("build_tmp/old.txt", 8*day), w.home.Aged("devops_agent_start_p_b-1_1.sh", 8*day),
		w.home.Aged("devops_agent_prepare_start_p_b-1_1.sh", 8*day)}
	kept := []string{w.home.Aged("build_tmp/young.txt", 6*day), w.home.Aged("build_tmp/dir/inner.txt", 20*day),
		w.home.Aged("devops_agent_start_p_b-2_1.sh", 6*day), w.home.Aged("devops_agent_prepare_start_p_b-2_1.sh", 6*day),
		w.home.Aged("other.sh", 20*day), w.home.Aged("workspace/p/src/file", 20*day), w.home.Aged("start.sh", 20*day)}
	w.home.Age("build_tmp/dir", 20*day)

	w.start()
	w.beats(2)
	build := lab.NewBuild()
	build.Project, build.VMSeq, build.Workspace, build.ExecuteCount = "other", "3", "ws ${x}", 2
	open := w.home.Gate(build)
	w.rec.Queue(build)
	w.mustBegin(pollLimit, build)
	began := w.home.Run(build).Began()
	w.watch(25 * time.Second)
	released := time.Now()
	open()
	report := w.mustFinish(30*time.Second, build)
	ended := w.home.Run(build).Ended()
	w.beats(2)
	w.watch(8 * time.Second)
	run := w.home.Run(build)

	s.check(3, true, "") // the agent has come this far with an address without scheme
	checkJob(s, w.home, run, build)
	checkArguments(s, w.home, run, build)
	checkLoginShell(s, w.home, run, build, "/bin/bash")
	s.check(50, run.Env()["LAB_PROFILE"] == "read", "the profile of a login shell was not read")
	s.check(51, true, "")
	checkEnvironment(w, run, build, "http://"+rec.Host)
	s.check(53, strings.TrimSpace(run.File("java")) == filepath.Join(jdk, "bin", "java"), "java was %q, the configured JDK is %s", strings.TrimSpace(run.File("java")), jdk)
	if s.mode == "ask" {
		s.check(52, run.Env()["DEVOPS_AGENT_JDK_17_PATH"] == filepath.Join(jdk, "bin", "java"), "DEVOPS_AGENT_JDK_17_PATH is %q", run.Env()["DEVOPS_AGENT_JDK_17_PATH"])
		s.check(52, run.Env()["DEVOPS_AGENT_JDK_8_PATH"] == w.home.Path("jdk", "bin", "java"), "DEVOPS_AGENT_JDK_8_PATH is %q", run.Env()["DEVOPS_AGENT_JDK_8_PATH"])
	}
	_, err := os.Stat(w.home.LabPath("runs", build.Key(), "tmp.writable"))
	s.check(55, err == nil, "the worker could not write into java.io.tmpdir")
	s.check(56, run.File("prefilled") != "", "the error file was empty when the worker began: a worker that dies at once would look good")
	s.check(56, run.File("error.emptied") != "" && run.File("error.emptied") == run.File("error.after"), "the error file changed while the worker ran: %q, then %q", run.File("error.emptied"), run.File("error.after"))

	// Reports.
	delay := report.At.Sub(ended)
	s.check(58, report.Get("success") == true && report.JSON()["error"] == nil, "report %v", report)
	_, there := report.JSON()["error"]
	s.check(58, there, "the report has no member error: %v", report)
	s.check(58, delay >= 7900*time.Millisecond && delay <= 14*time.Second, "reported %v after the end, want 8 s", delay)
	s.check(58, len(w.rec.Finishes(build.ID)) == 1, "%d reports", len(w.rec.Finishes(build.ID)))
	for key, want := range map[string]any{"projectId": "other", "buildId": build.ID, "vmSeqId": "3", "workspace": "ws ${x}",
		"pipelineId": build.Pipeline, "executeCount": json.Number("2"), "containerHashId": build.ContainerHashID} {
		s.check(62, report.Get(key) == want, "%s is %v in the report, want %v", key, report.Get(key), want)
	}
	for _, name := range []string{"devops_agent_start_other_" + build.ID + "_3.sh", "devops_agent_prepare_start_other_" + build.ID + "_3.sh",
		"build_tmp/" + build.Key() + "_build_msg.log"} {
		s.check(66, !w.home.Has(name), "%s is still there", name)
	}
	for _, path := range gone {
		_, err := os.Lstat(path)
		s.check(70, os.IsNotExist(err), "%s is still there after a job", path)
	}
	for _, path := range kept {
		_, err := os.Lstat(path)
		s.check(70, err == nil, "%s was deleted", path)
	}

	// What else was said while it ran.
	listed := false
	for _, q := range w.rec.Of(w.beat()) {
		tasks, _ := w.heartbeat(q)["taskList"].([]any)
		if q.At.After(began.Add(2*time.Second)) && q.At.Before(released) {
			if s.check(21, len(tasks) == 1, "taskList is %v while a job runs", tasks) {
				listed = true
				for key, want := range map[string]string{"projectId": "other", "buildId": build.ID, "vmSeqId": "3", "workspace": "ws ${x}"} {
					s.check(21, lab.Dig(tasks[0], key) == want, "taskList: %s is %v, want %s", key, lab.Dig(tasks[0], key), want)
				}
			}
		}
		if q.At.After(report.At.Add(time.Second)) {
			s.check(21, len(tasks) == 0, "taskList is %v after the end", tasks)
		}
		if s.mode == "ask" && q.At.After(began) && q.At.Before(ended) {
			s.check(40, q.Get("askEnable", "upgrade") == false && q.JSON()["upgrade"] == nil, "an upgrade check while a job runs: %v", q)
		}
	}
	s.check(21, listed, "no heartbeat while the job ran")
	for _, q := range w.rec.Of(lab.CheckUpgrade) {
		s.check(78, q.At.Before(began) || q.At.After(ended), "an upgrade check while a job runs: %v", q)
	}
	s.check(78, true, "")
	for _, q := range w.rec.All() {
		s.check(1, q.Header.Get("X-DEVOPS-PROJECT-ID") == w.home.Project, "the header carries project %q, want the agent's own: %v", q.Header.Get("X-DEVOPS-PROJECT-ID"), q)
		s.check(4, slices.Contains(lab.AgentEndpoints(), q.Endpoint), "unknown call %v", q)
	}
	s.check(11, len(w.home.FindSecret(w.home.Secret)) == 0, "the secret is in %v", w.home.FindSecret(w.home.Secret))
	w.alive(58)
}

func checkJob(s *S, h *lab.Home, run lab.Run, b lab.Build) {
	dir, _ := filepath.EvalSymlinks(h.Dir)
	s.check(48, strings.TrimSuffix(run.File("cwd"), "\n") == dir, "the worker's directory is %q, want %s", run.File("cwd"), dir)
	got, err := job(run.Args())
	if !s.check(48, err == nil, "last argument: %v; arguments %q", err, run.Args()) {
		return
	}
	for key, want := range map[string]any{"projectId": b.Project, "buildId": b.ID, "vmSeqId": b.VMSeq, "workspace": b.Workspace,
		"pipelineId": b.Pipeline, "executeCount": json.Number(fmt.Sprint(b.ExecuteCount)), "containerHashId": b.ContainerHashID} {
		s.check(48, got[key] == want, "%s is %v in the job, want %v", key, got[key], want)
	}
	docker, there := got["dockerBuildInfo"]
	s.check(48, there && docker == nil, "dockerBuildInfo is %v (present: %v), want null", docker, there)
	s.check(48, run.Starts() == 1, "%d workers were started", run.Starts())
}

func checkArguments(s *S, h *lab.Home, run lab.Run, b lab.Build) {
	args := run.Args()
	if !s.check(49, len(args) >= 4, "arguments %q", args) {
		return
	}
	before := args[:len(args)-1]
	for _, want := range []string{"-Dbuild.type=AGENT", "-DAGENT_LOG_PREFIX=" + b.Key() + "_agent", "-Xmx2g",
		"-Djava.io.tmpdir=" + h.Path("build_tmp"), "-Ddevops.agent.error.file=" + h.Path("build_tmp", b.Key()+"_build_msg.log")} {
		s.check(49, slices.Contains(before, want), "no %s in %q", want, before)
	}
	s.check(49, slices.Equal(args[len(args)-3:len(args)-1], []string{"-jar", h.Path("worker-agent.jar")}), "the last arguments are %q, want -jar %s and the job", args[len(args)-3:], h.Path("worker-agent.jar"))
	start := h.Path("devops_agent_start_" + b.Project + "_" + b.ID + "_" + b.VMSeq + ".sh")
	prestart := h.Path("devops_agent_prepare_start_" + b.Project + "_" + b.ID + "_" + b.VMSeq + ".sh")
	s.check(50, slices.Contains(before, "-Ddevops.slave.agent.start.file="+start), "start file: %q, want %s", before, start)
	s.check(50, slices.Contains(before, "-Ddevops.slave.agent.prepare.start.file="+prestart), "prestart file: %q, want %s", before, prestart)
}

func checkLoginShell(s *S, h *lab.Home, run lab.Run, b lab.Build, shell string) {
	start := h.Path("devops_agent_start_" + b.Project + "_" + b.ID + "_" + b.VMSeq + ".sh")
	n := 50
	if shell != "/bin/bash" {
		n = 51
	}
	parent := strings.Split(strings.TrimSuffix(run.File("parent"), "\n"), "\n")
	tail := parent[max(0, len(parent)-3):]
	s.check(n, slices.Equal(tail, []string{shell, "-l", start}), "the parent of java is %q, want %s -l %s", parent, shell, start)
	prestart := strings.Split(run.File("prestart.sh"), "\n")
	if s.check(n, len(prestart) >= 2, "the prestart script is %q", prestart) {
		s.check(n, prestart[0] == "#!"+shell, "the prestart script begins with %q", prestart[0])
		wanted := fmt.Sprintf("exec %s -l %s", shell, start)
		s.check(n, slices.ContainsFunc(prestart, func(line string) bool { return unquote(line) == unquote(wanted) }), "the prestart script is %q, want %s", prestart, wanted)
	}
	script := run.File("start.sh")
	s.check(n, strings.HasPrefix(script, "#!"+shell+"\n"), "the start script begins with %.40q", script)
}

func checkEnvironment(w *world, run lab.Run, b lab.Build, gateway string) {
	env := run.Env()
	startups := w.rec.Of(lab.Startup)
	version, _ := startups[0].Get("masterVersion").(string)
	for name, want := range map[string]string{
		"DEVOPS_AGENT_VERSION": version, "DEVOPS_WORKER_VERSION": lab.WorkerVersion, "DEVOPS_SLAVE_VERSION": lab.WorkerVersion,
		"DEVOPS_PROJECT_ID": b.Project, "PROJECT_ID": b.Project, "DEVOPS_BUILD_ID": b.ID, "BUILD_ID": b.ID,
		"DEVOPS_VM_SEQ_ID": b.VMSeq, "VM_SEQ_ID": b.VMSeq, "DEVOPS_FILE_GATEWAY": "http://files.lab.invalid",
		"DEVOPS_GATEWAY": gateway, "BK_CI_LOCALE_LANGUAGE": "zh_CN",
	} {
		w.check(52, env[name] == want, "%s is %q in the worker, want %q", name, env[name], want)
	}
	w.check(52, env["LAB_DIR"] == w.home.Lab, "the environment of the agent did not reach the worker")
}

func oddWorkdir(name string) func(*S) {
	return func(s *S) {
		w := s.world(lab.HomeOptions{Name: name})
		build := lab.NewBuild()
		w.rec.Queue(build)
		w.start()
		q := w.mustFinish(60*time.Second, build)
		run := w.home.Run(build)
		dir, _ := filepath.EvalSymlinks(w.home.Dir)
		s.check(54, q.Get("success") == true, "the job failed: %v", q)
		s.check(54, strings.TrimSuffix(run.File("cwd"), "\n") == dir, "the worker's directory is %q, want %q", run.File("cwd"), dir)
		args := run.Args()
		for _, want := range []string{"-Djava.io.tmpdir=" + w.home.Path("build_tmp"), w.home.Path("worker-agent.jar"),
			"-Ddevops.agent.error.file=" + w.home.Path("build_tmp", build.Key()+"_build_msg.log")} {
			s.check(54, slices.Contains(args, want), "no %q in %q", want, args)
		}
		_, err := job(args)
		s.check(54, err == nil, "last argument: %v", err)
		s.check(54, !w.home.Has("build_tmp/"+build.Key()+"_build_msg.log"), "the error file is still there")
		w.alive(54)
	}
}

// ownShell: $SHELL is used only when devops.agent.detect.shell says so.
func ownShell(s *S) {
	for _, detect := range []bool{true, false} {
		w := s.world(lab.HomeOptions{Name: fmt.Sprint("detect-", detect), Set: map[string]string{"devops.agent.detect.shell": fmt.Sprint(detect)}})
		profile := filepath.Join(w.home.User, ".profile")                                          // of sh
		if err := os.WriteFile(profile, []byte("export LAB_PROFILE=of-sh\n"), 0o644); err != nil { //nolint:gosec // a profile
			s.Fatalf("%v", err)
		}
		build := lab.NewBuild()
		w.rec.Queue(build)
		w.start("SHELL=/bin/sh")
		w.mustFinish(60*time.Second, build)
		shell := "/bin/bash"
		if detect {
			shell = "/bin/sh"
			s.check(51, w.home.Run(build).Env()["LAB_PROFILE"] == "of-sh", "~/.profile was not read")
		}
		checkLoginShell(s, w.home, w.home.Run(build), build, shell)
		s.check(50, true, "")
		s.check(51, true, "")
		w.agent.Kill()
	}
}

func tcsh(s *S) {
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.agent.detect.shell": "true"}})
	build := lab.NewBuild()
	w.rec.Queue(build)
	w.start("SHELL=/bin/tcsh")
	q := w.mustFinish(60*time.Second, build)
	s.check(50, q.Get("success") == true, "the job failed: %v", q)
	start := w.home.Path("devops_agent_start_" + build.Project + "_" + build.ID + "_" + build.VMSeq + ".sh")
	s.check(50, strings.Contains(unquote(w.home.Run(build).File("prestart.sh")), unquote("exec /bin/tcsh "+start+" -l")), "the prestart script is %q", w.home.Run(build).File("prestart.sh"))
}

// fastWorkers empty the error file and are gone before the agent has looked up from starting them.
func fastWorkers(s *S) {
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.parallel.task.count": "0"}})
	builds := make([]lab.Build, 6)
	for i := range builds {
		builds[i] = lab.NewBuild()
	}
	w.rec.Queue(builds...)
	w.start()
	for _, b := range builds {
		q := w.mustFinish(90*time.Second, b)
		s.check(56, q.Get("success") == true, "a fast worker was reported as failed: %v", q)
		s.check(56, w.home.Run(b).File("prefilled") != "", "the error file was empty when the worker began")
	}
	w.watch(3 * time.Second)
	for _, b := range builds {
		s.check(57, w.rec.Accepted(b.ID) == 1 && len(w.rec.Finishes(b.ID)) == 1, "%d reports", len(w.rec.Finishes(b.ID)))
	}
	w.alive(56)
}

// otherAccount runs builds as another account; only root can.
func otherAccount(s *S) {
	account, err := user.Lookup("games")
	if err != nil {
		account, err = user.Lookup("nobody")
	}
	if err != nil {
		s.Fatalf("no account to run builds as: %v", err)
	}
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.slave.user": account.Username}})
	build := lab.NewBuild()
	w.home.Work(&build, `cat .agent.properties >/dev/null && : >"$run/properties.readable"; mkdir -p workspace/x && : >"$run/workspace.writable"`)
	w.rec.Queue(build)
	w.start()
	q := w.mustFinish(60*time.Second, build)
	run := w.home.Run(build)
	s.check(55, q.Get("success") == true, "the job failed: %v", q)
	s.check(55, strings.TrimSpace(run.File("user")) == account.Username, "the worker ran as %q, want %s", strings.TrimSpace(run.File("user")), account.Username)
	for _, mark := range []string{"tmp.writable", "properties.readable"} {
		_, err = os.Stat(w.home.LabPath("runs", build.Key(), mark))
		s.check(55, err == nil, "as %s: not %s", account.Username, mark)
	}
	env := run.Env()
	for name, want := range map[string]string{"HOME": account.HomeDir, "USER": account.Username, "LOGNAME": account.Username} {
		s.check(52, env[name] == want, "%s is %q, want %q", name, env[name], want)
	}
}
