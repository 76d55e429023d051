//go:build linux

package e2e

import (
	"archive/zip"
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func upgradeScenarios() []scenario {
	return []scenario{
		both("upgrade: nothing is published", nothingPublished, 80, 81, 83),
		both("upgrade: server in trouble", downloadsFail(lab.Answer{Code: 500}, false), 83),
		both("upgrade: wrong checksum", downloadsFail(lab.Answer{Body: []byte("v9.9.9\n"), Header: http.Header{"X-Checksum-Md5": {strings.Repeat("0", 32)}}}, true), 84),
		both("upgrade: eTag and 304", notModified, 81, 82),
		both("upgrade: the same agent", sameAgent, 85),
		both("upgrade: an agent without version", mute, 86),
		both("upgrade: worker", newWorker, 87),
		both("upgrade: worker without version", muteWorker, 88),
		both("upgrade: JDK", newJDK, 89),
		both("upgrade: agent", newAgent, 90),
		both("upgrade: order", inOrder, 91),
		both("upgrade: container script alone", scriptAlone, 91),
		both("upgrade: a job in between", jobInBetween, 92),
		both("upgrade: no job under the lock", noJobUnderLock, 93),
		both("upgrade: stalled download", stalledDownload, 94),
		both("upgrade: archive with a way out", wayOut("../evil"), 95),
		both("upgrade: archive with an absolute way out", wayOut("/evil"), 95),
	}
}

// offerLimit is how long an offer may take to be answered on a busy machine: versions become known, the next check comes.
const offerLimit = 90 * time.Second

// The server's names for this machine (protocol §1.6.6).
func (w *world) remote(part string) string {
	suffix := ""
	if runtime.GOARCH == "arm64" {
		suffix = "_arm64"
	}
	switch part {
	case "jar":
		return "jar/worker-agent.jar"
	case "jdk":
		if w.mode == "split" {
			return "jre/linux" + suffix + "/jre.zip"
		}
		return "jre/linux" + suffix + "/jdk17.zip"
	case "script":
		return "script/linux/agent_docker_init.sh"
	}
	return "upgrade/" + part + "_linux" + suffix
}

// jdkFolder is the folder of the JDK that the server orders in this mode, its archive in tmp/, and its property.
func (w *world) jdkFolder() (folder, archive, property string) {
	if w.mode == "split" {
		return "jdk", "jdk.zip", "devops.agent.jdk.dir.path"
	}
	return "jdk17", "jdk17.zip", "devops.agent.jdk17.dir.path"
}

// script publishes a program that is a shell script.
func (w *world) publish(part, text string) { w.rec.Publish(w.remote(part), []byte(text)) }

// publishAgent publishes a new agent, which says a version and does nothing else, with what comes with it.
func (w *world) publishAgent(version string) {
	w.publish("devopsAgent", "#!/bin/sh\necho "+version+"\n")
	w.publish("devopsDaemon", "#!/bin/sh\necho "+version+"\n")
	stub, err := os.ReadFile(w.home.Path("tmp", "upgrader"))
	if err != nil {
		w.Fatalf("read the stub: %v", err)
	}
	w.publish("upgrader", string(stub))
}

// publishJDK publishes the stub's JDK with one file more; java is put in front of what java does.
func (w *world) publishJDK(java string, more map[string]string) {
	stub, err := os.ReadFile(w.home.Path("jdk", "bin", "java"))
	if err != nil {
		w.Fatalf("read the stub: %v", err)
	}
	files := map[string]string{"bin/java": strings.Replace(string(stub), "\n", "\n"+java+"\n", 1), "release": "new\n"}
	for name, text := range more {
		files[name] = text
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, text := range files {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o755)
		f, err := z.CreateHeader(h)
		if err == nil {
			_, err = f.Write([]byte(text))
		}
		if err != nil {
			w.Fatalf("pack a JDK: %v", err)
		}
	}
	if err := z.Close(); err != nil {
		w.Fatalf("pack a JDK: %v", err)
	}
	w.rec.Publish(w.remote("jdk"), b.Bytes())
}

// offer has the server want parts, waits for the answer and returns it.
func (w *world) offer(items ...string) lab.Request {
	mark := w.rec.Mark()
	w.rec.Offer(items...)
	q, ok := w.rec.WaitFor(offerLimit, mark, lab.FinishUpgrade)
	w.rec.Offer()
	if !ok {
		w.Fatalf("the offer of %v was not answered within %v; downloads: %v; output: %s", items, offerLimit, w.asked(), w.agent.Output())
	}
	return q
}

// asked lists the files that were asked for.
func (w *world) asked() []string {
	var names []string
	for _, q := range w.rec.Of(lab.Download) {
		names = append(names, q.Query.Get("file"))
	}
	return names
}

func (w *world) read(name string) string {
	data, _ := os.ReadFile(w.home.Path(filepath.FromSlash(name)))
	return string(data)
}

func md5Of(text string) string {
	sum := md5.Sum([]byte(text))
	return hex.EncodeToString(sum[:])
}

// clean checks that an upgrade left nothing half done.
func (w *world) clean(n int) {
	for _, pattern := range []string{"jdk*_*", "*.zip", "*.old", "tmp/*.part*", "tmp/incoming/*", "upgrade/open-*"} {
		found, _ := filepath.Glob(w.home.Path(filepath.FromSlash(pattern)))
		w.check(n, len(found) == 0, "left behind: %v", found)
	}
}

// beatAfter is the next heartbeat after a request.
func (w *world) beatAfter(q lab.Request) map[string]any {
	next, ok := w.rec.WaitFor(30*time.Second, q.N+1, w.beat())
	if !ok {
		w.Fatalf("no heartbeat after the upgrade")
	}
	return w.heartbeat(next)
}

func nothingPublished(s *S) {
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.docker.enable": "true"}})
	stub := w.read("tmp/upgrader")
	w.start()
	q := w.offer("agent", "worker", "jdk", "dockerInitFile")
	s.check(83, q.Query.Get("success") == "false", "answered with %q", q.RawQuery)
	want := []string{w.remote("upgrader"), w.remote("devopsDaemon"), w.remote("devopsAgent"), w.remote("jar"), w.remote("jdk"), w.remote("script")}
	got := w.asked()
	slices.Sort(want)
	sorted := slices.Sorted(slices.Values(got))
	s.check(80, slices.Equal(sorted, want), "asked for %v, want %v", got, want)
	for _, q := range w.rec.Of(lab.Download) {
		etag, there := q.Query["eTag"]
		if q.Query.Get("file") == w.remote("upgrader") {
			s.check(81, there && etag[0] == md5Of(stub), "eTag of the upgrader is %v, want %s", etag, md5Of(stub))
		} else {
			s.check(81, !there, "eTag %v for %s, which is not there", etag, q.Query.Get("file"))
		}
		s.check(80, !strings.Contains(q.RawQuery, "%"), "query %q", q.RawQuery)
	}
	w.clean(83)
	w.alive(83)
	w.beats(1)
}

// downloadsFail gives a worker up, once, and goes on.
func downloadsFail(a lab.Answer, checksum bool) func(*S) {
	return func(s *S) {
		n := 83
		if checksum {
			n = 84
		}
		w := s.world(lab.HomeOptions{})
		w.rec.Always(lab.Download, a)
		w.start()
		q := w.offer("worker")
		s.check(n, q.Query.Get("success") == "false", "answered with %q", q.RawQuery)
		s.check(n, w.read("worker-agent.jar") == lab.WorkerVersion+"\n", "the worker was replaced")
		s.check(n, !w.home.Has("tmp/worker-agent.jar"), "a bad file is where the worker is mended from")
		s.check(n, w.beatAfter(q)["slaveVersion"] == lab.WorkerVersion, "another worker is reported")
		build := lab.NewBuild()
		w.rec.Queue(build)
		s.check(n, w.mustFinish(60*time.Second, build).Get("success") == true, "no builds afterwards")
		w.clean(n)
		w.alive(n)
	}
}

func notModified(s *S) {
	w := s.world(lab.HomeOptions{})
	w.home.Write("tmp/worker-agent.jar", "v9.9.9\n")
	w.publish("jar", "v9.9.9\n")
	w.start()
	q := w.offer("worker")
	downloads := w.rec.Of(lab.Download)
	s.check(81, len(downloads) == 1 && downloads[0].Query.Get("eTag") == md5Of("v9.9.9\n"), "asked with %v", downloads)
	s.check(82, q.Query.Get("success") == "true", "answered with %q", q.RawQuery)
	s.check(82, w.read("worker-agent.jar") == "v9.9.9\n", "the file that was there was not used")
	w.clean(82)
	w.alive(82)
}

func sameAgent(s *S) {
	w := s.world(lab.HomeOptions{})
	w.publishAgent("v2.0.0")
	w.publish("devopsAgent", w.read("devopsAgent"))
	w.start()
	q := w.offer("agent")
	want := map[string]string{"split": "false", "ask": "true"}[s.mode] // protocol §4.3
	s.check(85, q.Query.Get("success") == want, "answered with %q, want %s", q.RawQuery, want)
	w.watch(5 * time.Second)
	w.clean(85)
	w.alive(85)
}

func mute(s *S) {
	w := s.world(lab.HomeOptions{})
	w.publishAgent("v2.0.0")
	w.publish("devopsAgent", "#!/bin/sh\nexit 0\n")
	before := w.read("devopsAgent")
	w.start()
	q := w.offer("agent")
	s.check(86, q.Query.Get("success") == "false", "answered with %q", q.RawQuery)
	w.watch(5 * time.Second)
	s.check(86, w.read("devopsAgent") == before, "the agent was replaced")
	w.clean(86)
	w.alive(86)
}

func newWorker(s *S) {
	w := s.world(lab.HomeOptions{})
	w.publish("jar", "v9.9.9\n")
	w.start()
	q := w.offer("worker")
	s.check(87, q.Query.Get("success") == "true", "answered with %q", q.RawQuery)
	s.check(87, w.read("worker-agent.jar") == "v9.9.9\n", "the worker is %q", w.read("worker-agent.jar"))
	s.check(87, w.beatAfter(q)["slaveVersion"] == "v9.9.9", "the heartbeat reports %v", w.beatAfter(q)["slaveVersion"])
	s.check(87, w.home.Has("tmp/worker-agent.jar"), "nothing to mend the worker with")
	build := lab.NewBuild()
	w.rec.Queue(build)
	s.check(87, w.mustFinish(60*time.Second, build).Get("success") == true, "the new worker does not work")
	w.clean(87)
	w.alive(87)
}

func muteWorker(s *S) {
	w := s.world(lab.HomeOptions{})
	w.publish("jar", "no version at all\n")
	w.start()
	q := w.offer("worker")
	s.check(88, q.Query.Get("success") == "false", "answered with %q", q.RawQuery)
	s.check(88, w.read("worker-agent.jar") == lab.WorkerVersion+"\n", "the worker is %q", w.read("worker-agent.jar"))
	w.clean(88)
	w.alive(88)
}

func newJDK(s *S) {
	w := s.world(lab.HomeOptions{})
	folder, archive, property := w.jdkFolder()
	w.publishJDK("", nil)
	w.start()
	first := lab.NewBuild()
	w.rec.Queue(first)
	w.mustFinish(60*time.Second, first)
	q := w.offer("jdk")
	s.check(89, q.Query.Get("success") == "true", "answered with %q", q.RawQuery)
	dir := w.home.Property(property)
	if !filepath.IsAbs(dir) {
		dir = w.home.Path(dir)
	}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	s.check(89, err == nil && string(release) == "new\n", "%s in .agent.properties is %q, and holds no new JDK: %v", property, dir, err)
	s.check(89, w.read(folder+"/release") == "new\n", "%s holds no new JDK", folder)
	s.check(89, w.home.Has("tmp/"+archive), "tmp/%s is gone", archive)
	build := lab.NewBuild()
	w.rec.Queue(build)
	s.check(89, w.mustFinish(60*time.Second, build).Get("success") == true, "no builds with the new JDK")
	java := strings.TrimSpace(w.home.Run(build).File("java"))
	s.check(89, java == filepath.Join(dir, "bin", "java"), "the job ran with %s, want %s", java, filepath.Join(dir, "bin", "java"))
	w.clean(89)
	w.alive(89)
	for i, gap := range gaps(w.rec.Of(w.beat())) { // the bound of statements 18 and 37
		s.check(89, gap < 13*time.Second, "a heartbeat came late, by %v, before number %d", gap, i+1)
	}
}

func newAgent(s *S) {
	w := s.world(lab.HomeOptions{})
	w.publishAgent("v2.0.0")
	w.start()
	mark := w.rec.Mark()
	w.rec.Offer("agent")
	code, err := w.agent.Wait(offerLimit)
	s.check(90, err == nil && code == 0, "the agent ended with %d, %v; output: %s", code, err, w.agent.Output())
	s.check(90, lab.Eventually(10*time.Second, func() bool { return len(w.home.UpgraderCalls()) == 1 }), "upgrader calls: %v", w.home.UpgraderCalls())
	for _, call := range w.home.UpgraderCalls() {
		dir, _ := filepath.EvalSymlinks(w.home.Dir)
		s.check(90, slices.Equal(call.Args, []string{"-action=upgrade"}), "arguments %q", call.Args)
		s.check(90, call.Dir == dir, "called in %s, want %s", call.Dir, dir)
	}
	for _, q := range w.rec.All()[mark:] {
		s.check(90, q.Endpoint != lab.FinishUpgrade, "reported before it was over: %v", q)
	}
	s.check(90, w.read("tmp/devopsAgent") == "#!/bin/sh\necho v2.0.0\n", "tmp/devopsAgent is %q", w.read("tmp/devopsAgent"))
}

func inOrder(s *S) {
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.docker.enable": "true"}})
	folder, _, _ := w.jdkFolder()
	w.publishAgent("v2.0.0")
	w.publish("jar", "v9.9.9\n")
	w.publish("script", "#!/bin/sh\n")
	w.publishJDK("", nil)
	// The upgrader that comes along sees what is there when it is started.
	w.publish("upgrader", "#!/bin/sh\n{ cat "+folder+"/release worker-agent.jar; ls agent_docker_init.sh; } >\"$LAB_DIR/seen.new\" 2>/dev/null\nmv \"$LAB_DIR/seen.new\" \"$LAB_DIR/seen\"\n")
	w.start()
	w.rec.Offer("agent", "worker", "jdk", "dockerInitFile")
	code, err := w.agent.Wait(offerLimit)
	s.check(91, err == nil && code == 0, "the agent ended with %d, %v; output: %s", code, err, w.agent.Output())
	seen := ""
	s.check(91, lab.Eventually(10*time.Second, func() bool {
		data, err := os.ReadFile(w.home.LabPath("seen"))
		seen = string(data)
		return err == nil
	}), "the upgrader was not started")
	s.check(91, seen == "new\nv9.9.9\n", "when the upgrader was started there was %q", seen)
}

func scriptAlone(s *S) {
	w := s.world(lab.HomeOptions{Set: map[string]string{"devops.docker.enable": "true"}})
	w.publish("script", "#!/bin/sh\n# new\n")
	w.start()
	q := w.offer("dockerInitFile")
	s.check(91, q.Query.Get("success") == "true", "answered with %q", q.RawQuery)
	s.check(91, w.read("agent_docker_init.sh") == "#!/bin/sh\n# new\n", "the script is %q", w.read("agent_docker_init.sh"))
	info, err := os.Stat(w.home.Path("agent_docker_init.sh"))
	s.check(91, err == nil && info.Mode().Perm()&0o111 == 0o111, "mode of the script: %v, %v", info, err)
	w.alive(91)
}

func jobInBetween(s *S) {
	w := s.world(lab.HomeOptions{})
	w.publish("jar", "v9.9.9\n")
	build := lab.NewBuild()
	open := w.home.Gate(build)
	// The job is there before the download ends.
	w.rec.On(lab.Download, func(lab.Request) *lab.Answer {
		w.rec.Queue(build)
		w.home.WaitBegan(40*time.Second, build)
		return nil
	})
	w.start()
	q := w.offer("worker")
	s.check(92, w.home.Run(build).Starts() == 1, "the job has not begun: %s", w.agent.Output())
	s.check(92, q.Query.Get("success") == "false", "answered with %q", q.RawQuery)
	s.check(92, w.read("worker-agent.jar") == lab.WorkerVersion+"\n", "the worker was replaced under a job")
	open()
	s.check(92, w.mustFinish(60*time.Second, build).Get("success") == true, "the job failed")
	w.clean(92)
	w.alive(92)
}

func noJobUnderLock(s *S) {
	w := s.world(lab.HomeOptions{})
	folder, _, _ := w.jdkFolder()
	// A JDK that takes its time to be tried where it is live: meanwhile the lock is held.
	w.publishJDK(`case "$0 $1" in */`+folder+`/bin/java\ -version)
	[ -e "$LAB_DIR/tried" ] || { : >"$LAB_DIR/trying"; sleep 12; : >"$LAB_DIR/tried"; } ;;
esac`, nil)
	w.start()
	has := func(name string) bool {
		_, err := os.Stat(w.home.LabPath(name))
		return err == nil
	}
	mark := w.rec.Mark()
	w.rec.Offer("jdk")
	if !lab.Eventually(offerLimit, func() bool { return has("trying") }) {
		s.Fatalf("the JDK was not replaced; downloads %v; output: %s", w.asked(), w.agent.Output())
	}
	w.rec.Offer()
	build := lab.NewBuild()
	from := w.rec.Mark()
	w.rec.Queue(build)
	if !lab.Eventually(30*time.Second, func() bool { return has("tried") }) {
		s.Fatalf("the JDK was not tried to the end")
	}
	to := w.rec.Mark()
	asked := 0
	for i, kind := range w.kinds(from)[:len(w.kinds(from))-len(w.kinds(to))] {
		asked++
		s.check(93, kind == "NONE", "question %d under the lock was for %s", i, kind)
	}
	s.check(93, s.mode == "split" || asked > 0, "nothing was asked while the lock was held")
	s.check(93, w.home.Run(build).Starts() == 0, "a job began under the lock")
	q, ok := w.rec.WaitFor(60*time.Second, mark, lab.FinishUpgrade)
	s.check(93, ok && q.Query.Get("success") == "true", "answered with %q", q.RawQuery)
	s.check(93, w.mustFinish(60*time.Second, build).Get("success") == true, "the job failed after it")
	w.clean(93)
	w.alive(93)
}

func stalledDownload(s *S) {
	w := s.world(lab.HomeOptions{})
	w.rec.On(lab.Download, func(lab.Request) *lab.Answer {
		return &lab.Answer{Stream: func(rw http.ResponseWriter, q *http.Request) {
			rw.Header().Set("Content-Length", "1000000")
			_, _ = rw.Write(bytes.Repeat([]byte("x"), 1000))
			_ = http.NewResponseController(rw).Flush()
			<-q.Context().Done()
		}}
	})
	w.start()
	mark := w.rec.Mark()
	w.rec.Offer("worker")
	if _, ok := w.rec.WaitFor(offerLimit, mark, lab.Download); !ok {
		s.Fatalf("nothing was downloaded")
	}
	w.rec.Offer()
	during, after := lab.NewBuild(), lab.NewBuild()
	w.rec.Queue(during)
	s.check(94, w.mustFinish(28*time.Second, during).Get("success") == true, "no jobs during a stalled download")
	q, ok := w.rec.WaitFor(60*time.Second, mark, lab.FinishUpgrade)
	s.check(94, ok && q.Query.Get("success") == "false", "the download was not given up: %q", q.RawQuery)
	w.rec.Queue(after)
	s.check(94, w.mustFinish(60*time.Second, after).Get("success") == true, "no jobs after a stalled download")
	w.alive(94)
}

// wayOut offers an archive with an entry outside of its directory; an absolute one gets the directory above the home in front.
func wayOut(name string) func(*S) {
	return func(s *S) {
		w := s.world(lab.HomeOptions{})
		outside := filepath.Join(filepath.Dir(w.home.Dir), "evil")
		entry := name
		if filepath.IsAbs(entry) {
			entry = outside
		}
		w.publishJDK("", map[string]string{entry: "evil\n"})
		w.start()
		q := w.offer("jdk")
		s.check(95, q.Query.Get("success") == "false", "answered with %q", q.RawQuery)
		_, err := os.Lstat(outside)
		s.check(95, err != nil, "%s was written", outside)
		s.check(95, !w.home.Has("jdk/release") && !w.home.Has("jdk17/release"), "the JDK was replaced")
		w.clean(95)
		w.alive(95)
	}
}
