//go:build linux

package e2e

import (
	"archive/zip"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// workerJar compiles testdata/worker and packs it as a worker-agent.jar.
func workerJar(t *testing.T) string {
	t.Helper()
	classes := t.TempDir()
	var sources []string
	err := filepath.WalkDir("testdata/worker", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".java") {
			sources = append(sources, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	compile := exec.Command("javac", append([]string{"-encoding", "UTF-8", "-d", classes, "--release", "11"}, sources...)...)
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("javac: %v\n%s", err, out)
	}
	path := filepath.Join(t.TempDir(), "worker-agent.jar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	manifest, err := z.Create("META-INF/MANIFEST.MF")
	if err == nil {
		_, err = manifest.Write([]byte("Manifest-Version: 1.0\r\nMain-Class: lab.Worker\r\n\r\n"))
	}
	if err == nil {
		err = z.AddFS(os.DirFS(classes))
	}
	if err == nil {
		err = z.Close()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatalf("pack the jar: %v", err)
	}
	return path
}

// TestAcceptanceJVM runs jobs in a real JVM that looks at everything a worker looks at.
func TestAcceptanceJVM(t *testing.T) {
	javac, err := exec.LookPath("javac")
	if err != nil {
		t.Skip("no javac on this machine: install openjdk-17-jdk-headless")
	}
	t.Parallel()
	resolved, err := filepath.EvalSymlinks(javac)
	if err != nil {
		t.Fatal(err)
	}
	jdk := filepath.Dir(filepath.Dir(resolved))
	jar := workerJar(t)
	for _, mode := range []string{"split", "ask"} {
		t.Run(mode, func(t *testing.T) {
			inline(t, mode, func(s *S) {
				w := s.world(lab.HomeOptions{Name: "with a blank", JDK: "-", NoJar: true})
				folder := map[string]string{"split": "jdk", "ask": "jdk17"}[mode]
				err := os.Symlink(jdk, w.home.Path(folder))
				if err == nil {
					var data []byte
					if data, err = os.ReadFile(jar); err == nil {
						w.home.Write("worker-agent.jar", string(data))
					}
				}
				if err != nil {
					s.Fatalf("prepare: %v", err)
				}
				good, bad := lab.NewBuild(), lab.NewBuild()
				bad.Workspace = "fail"
				w.rec.Queue(good, bad)
				w.start()
				q := w.mustFinish(90*time.Second, good)
				s.check(outside, q.Get("success") == true, "a job in a real JVM: %v", q)
				q = w.mustFinish(60*time.Second, bad)
				message, _ := q.Get("message").(string)
				s.check(outside, q.Get("success") == false && strings.Contains(message, "the job asked for it") && !strings.Contains(message, ";"), "a failing job in a real JVM: %v", q)
				seen, _ := os.ReadFile(w.home.Path("jvm.seen"))
				s.check(outside, strings.Contains(string(seen), "dockerBuildInfo"), "the JVM saw %q", seen)
				_, ok := w.rec.Wait(60*time.Second, 0, func(q lab.Request) bool {
					return q.Endpoint == w.beat() && w.heartbeat(q)["slaveVersion"] == "v9.8.7"
				})
				s.check(outside, ok, "no heartbeat with the version that the jar's own class prints")
				lines, _ := lab.Dig(w.heartbeat(w.rec.Of(w.beat())[len(w.rec.Of(w.beat()))-1]), "props", "jdkVersion").([]any)
				if s.check(outside, len(lines) == 3, "jdkVersion is %v", lines) {
					for i, want := range []string{" version ", " Runtime Environment ", " Server VM "} {
						line, _ := lines[i].(string)
						s.check(outside, strings.Contains(line+" ", want) || i == 0 && line != "", "jdkVersion[%d] is %q", i, line)
					}
				}
				w.alive(outside)
			})
		})
	}
}
