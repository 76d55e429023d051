package host

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const java17 = "openjdk 17.0.9 2023-10-17\nOpenJDK Runtime Environment (build 17.0.9+9)\nOpenJDK 64-Bit Server VM (build 17.0.9+9, mixed mode)\n"

// fakeJava counts its starts and answers as told.
type fakeJava struct {
	mu     sync.Mutex
	starts []string
	answer func(name string, args []string) (string, error)
}

func (f *fakeJava) run(_ context.Context, _, name string, args ...string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.starts = append(f.starts, filepath.Base(name)+" "+strings.Join(args, " "))
	out, err := f.answer(name, args)
	return []byte(out), err
}

func (f *fakeJava) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.starts)
}

func good(_ string, args []string) (string, error) {
	if args[0] == "--version" || args[0] == "-version" {
		return java17, nil
	}
	return "v1.2.3\n", nil
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// homeWithJDK has a JDK 17 and a worker jar.
func homeWithJDK(t *testing.T) (home, jdk17 string) {
	t.Helper()
	home = t.TempDir()
	jdk17 = filepath.Join(home, "jdk17")
	put(t, JavaPath(jdk17, runtime.GOOS), "java")
	put(t, filepath.Join(home, "worker-agent.jar"), "jar")
	return home, jdk17
}

func TestVersionsAreProbedOnceAndRemembered(t *testing.T) {
	home, jdk17 := homeWithJDK(t)
	synctest.Test(t, func(t *testing.T) {
		java := &fakeJava{answer: good}
		p := NewProber(home, java.run, quiet())
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()

		if v := p.Get("", jdk17); v.Known || v.Worker != "" || v.JDK == nil || len(v.JDK) != 0 {
			t.Errorf("before the first probe: %+v", v)
		}
		synctest.Wait()
		want := Versions{Worker: "v1.2.3", JDK: strings.Split(strings.TrimSpace(java17), "\n"), Known: true}
		for range 3 {
			if v := p.Get("", jdk17); !reflect.DeepEqual(v, want) {
				t.Errorf("after it: %+v", v)
			}
			synctest.Wait()
		}
		if java.count() != 2 {
			t.Errorf("started: %q", java.starts)
		}

		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
		again := NewProber(home, java.run, quiet())
		if v := again.Get("", jdk17); !reflect.DeepEqual(v, want) {
			t.Errorf("after a restart: %+v", v)
		}
		if java.count() != 2 {
			t.Errorf("a restart started %q", java.starts)
		}
	})
	info, err := os.Stat(filepath.Join(home, "runtime", "versions.json"))
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("versions.json has mode %v", info.Mode())
	}
}

func TestAReplacedFileIsProbedAgain(t *testing.T) {
	home, jdk17 := homeWithJDK(t)
	synctest.Test(t, func(t *testing.T) {
		java := &fakeJava{answer: good}
		p := NewProber(home, java.run, quiet())
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go func() { _ = p.Run(ctx) }()
		p.Get("", jdk17)
		synctest.Wait()

		put(t, filepath.Join(home, "worker-agent.jar"), "another jar")
		java.answer = func(name string, args []string) (string, error) { return "v2.0.0", nil }
		if v := p.Get("", jdk17); v.Known || v.Worker != "v1.2.3" {
			t.Errorf("right after the exchange: %+v", v)
		}
		synctest.Wait()
		if v := p.Get("", jdk17); !v.Known || v.Worker != "v2.0.0" || len(v.JDK) != 3 {
			t.Errorf("later: %+v", v)
		}
		if java.count() != 3 {
			t.Errorf("started: %q", java.starts)
		}
		stop()
	})
}

func TestJDK8ServesWithoutJDK17AndNativeWorkerWithoutJar(t *testing.T) {
	home := t.TempDir()
	jdk := filepath.Join(home, "jdk")
	put(t, JavaPath(jdk, runtime.GOOS), "java")
	native := "devopsWorker"
	if runtime.GOOS == "windows" {
		native += ".exe"
	}
	put(t, filepath.Join(home, native), "x")
	synctest.Test(t, func(t *testing.T) {
		java := &fakeJava{answer: good}
		p := NewProber(home, java.run, quiet())
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go func() { _ = p.Run(ctx) }()
		p.Get(jdk, filepath.Join(home, "jdk17"))
		synctest.Wait()
		if v := p.Get(jdk, filepath.Join(home, "jdk17")); !v.Known || v.Worker != "v1.2.3" || len(v.JDK) != 3 {
			t.Errorf("%+v", v)
		}
		if want := []string{"java -version", native + " version"}; !reflect.DeepEqual(java.starts, want) {
			t.Errorf("started %q, want %q", java.starts, want)
		}
		stop()
	})
}

func TestNativeWorkerOfThePackageWhereHomeHasNone(t *testing.T) {
	home, vendor := t.TempDir(), t.TempDir()
	native := "devopsWorker"
	if runtime.GOOS == "windows" {
		native += ".exe"
	}
	put(t, filepath.Join(vendor, native), "x")
	p := NewProber(home, (&fakeJava{answer: good}).run, quiet())
	if now := p.look("", ""); now.worker != "" {
		t.Errorf("worker %s of nobody", now.worker)
	}
	p.Programs = vendor
	if now := p.look("", ""); now.worker != filepath.Join(vendor, native) || now.workerIdentity == "" {
		t.Errorf("%+v", now)
	}
	put(t, filepath.Join(home, native), "x")
	if now := p.look("", ""); now.worker != filepath.Join(home, native) {
		t.Errorf("%+v", now)
	}
}

func TestWithoutAnyJDKNothingIsStarted(t *testing.T) {
	home := t.TempDir()
	put(t, filepath.Join(home, "worker-agent.jar"), "jar")
	p := NewProber(home, (&fakeJava{answer: good}).run, quiet())
	if v := p.Get(filepath.Join(home, "jdk"), filepath.Join(home, "jdk17")); !v.Known || v.Worker != "" || v.JDK == nil || len(v.JDK) != 0 {
		t.Errorf("%+v", v)
	}
}

func TestABrokenJDKCountsOnlyAfterThreeTries(t *testing.T) {
	home, jdk17 := homeWithJDK(t)
	synctest.Test(t, func(t *testing.T) {
		java := &fakeJava{answer: func(string, []string) (string, error) {
			return "", &os.PathError{Op: "fork/exec", Err: os.ErrPermission}
		}}
		p := NewProber(home, java.run, quiet())
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go func() { _ = p.Run(ctx) }()
		p.Get("", jdk17)
		synctest.Wait()
		if v := p.Get("", jdk17); v.Known {
			t.Errorf("after one failure: %+v", v)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if v := p.Get("", jdk17); !v.Known || len(v.JDK) != 0 || v.Worker != "" {
			t.Errorf("after three: %+v", v)
		}
		if n := java.count(); n != 6 {
			t.Errorf("%d starts", n)
		}
		java.mu.Lock()
		java.answer = good
		java.mu.Unlock()
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		if v := p.Get("", jdk17); !v.Known || len(v.JDK) != 3 || v.Worker != "v1.2.3" {
			t.Errorf("healed: %+v", v)
		}
		stop()
	})
}

func TestATimeOutNeverCountsAsBroken(t *testing.T) {
	home, jdk17 := homeWithJDK(t)
	synctest.Test(t, func(t *testing.T) {
		java := &fakeJava{answer: func(string, []string) (string, error) { return "", context.DeadlineExceeded }}
		p := NewProber(home, java.run, quiet())
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go func() { _ = p.Run(ctx) }()
		for range 720 { // an hour of heartbeats
			if v := p.Get("", jdk17); v.Known {
				t.Fatalf("%+v", v)
			}
			time.Sleep(5 * time.Second)
		}
		if n := java.count(); n > 40 {
			t.Errorf("%d starts in an hour", n)
		}
		stop()
	})
}

// TestAMachineAtItsLimitsHasNoBrokenJDK: the server would order a new one.
func TestAMachineAtItsLimitsHasNoBrokenJDK(t *testing.T) {
	for _, lack := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN} {
		err := &os.PathError{Op: "fork/exec", Path: "java", Err: lack}
		if !inconclusive(t.Context(), err) {
			t.Errorf("%v counts as broken", err)
		}
	}
	if inconclusive(t.Context(), &os.PathError{Op: "fork/exec", Path: "java", Err: syscall.ENOENT}) {
		t.Error("a program that is not there does not count as broken")
	}
}

func TestASpoiltRecordIsIgnored(t *testing.T) {
	for _, text := range []string{"", "{", "null", `{"jdk":{"identity":"x","lines":["a"]}}`, `{"worker":{"lines":[1]}}`, "\x00\x00"} {
		home, jdk17 := homeWithJDK(t)
		put(t, filepath.Join(home, "runtime", "versions.json"), text)
		p := NewProber(home, (&fakeJava{answer: good}).run, quiet())
		if v := p.Get("", jdk17); v.Known || v.Worker != "" || len(v.JDK) != 0 {
			t.Errorf("%q: %+v", text, v)
		}
	}
}

func TestJarVersionAsksTheJavaThatIsThere(t *testing.T) {
	home, jdk17 := homeWithJDK(t)
	java := &fakeJava{answer: good}
	p := NewProber(home, java.run, quiet())
	if v := p.JarVersion(t.Context(), "", jdk17, filepath.Join(home, "tmp", "worker-agent.jar")); v != "v1.2.3" {
		t.Errorf("%q", v)
	}
	java.answer = func(string, []string) (string, error) { return "v9.9.9", os.ErrPermission }
	if v := p.JarVersion(t.Context(), "", jdk17, "x.jar"); v != "" {
		t.Errorf("%q", v)
	}
	if free, err := FreeBytes(home); err != nil || free == 0 {
		t.Errorf("%d, %v", free, err)
	}
}

func TestExecBoundsTimeAndOutput(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := Exec(t.Context(), t.TempDir(), self, "-test.run=^TestNoise$", "-test.v", "-test.count=1", "noise")
	if err != nil || len(out) != maxOutput {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Exec(ctx, t.TempDir(), self, "-test.run=^TestNoise$", "hang"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program that hangs: %v", err)
	}
	if _, err := Exec(t.Context(), t.TempDir(), "java"); err == nil {
		t.Error("a program without a path was searched for")
	}
	var exit *exec.ExitError
	if _, err := Exec(t.Context(), t.TempDir(), self, "-test.run=^TestNoise$", "fail"); !errors.As(err, &exit) || inconclusive(t.Context(), err) {
		t.Errorf("a program that fails: %v", err)
	}
}

// TestNoise is the program that TestExecBoundsTimeAndOutput starts.
func TestNoise(t *testing.T) {
	switch os.Args[len(os.Args)-1] {
	case "noise":
		for range 3000 {
			_, _ = os.Stdout.WriteString(strings.Repeat("x", 99) + "\n")
		}
	case "hang":
		select {
		case <-t.Context().Done():
		case <-time.After(time.Minute):
		}
	case "fail":
		os.Exit(3)
	}
}

func TestTheRealJava(t *testing.T) {
	java, err := exec.LookPath("java")
	if err != nil {
		t.Skip("needs a machine with java in its PATH")
	}
	out, err := Exec(t.Context(), t.TempDir(), java, "--version")
	if err != nil {
		t.Fatal(err)
	}
	if lines := jdkLines(string(out)); lines[0] == "" || lines[1] == "" || lines[2] == "" {
		t.Errorf("%q from %q", lines, out)
	}
}
