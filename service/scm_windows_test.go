package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	win "golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"

	"github.com/devops-agent/devops-agent/service/control"
)

// playsProgram lets a copy of the test program be a service, or the agent under it, when it is called so: a service gets
// no environment of ours.
func playsProgram() bool {
	if os.Getenv(part) != "" {
		return false
	}
	var err error
	switch strings.ToLower(filepath.Base(os.Args[0])) {
	case "devopsdaemon.exe":
		err = svc.Run("", playedService{})
	case "devopsagent.exe":
		err = playAgentOfService()
	default:
		return false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// playedService is the smallest service around a Daemon.
type playedService struct{}

func (playedService) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	program, err := os.Executable()
	if err != nil {
		return true, 2
	}
	inst, err := Open(filepath.Dir(program))
	if err != nil {
		return true, 3
	}
	d := NewDaemon(DaemonOptions{Installation: inst, GOOS: "windows", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	ended := make(chan error, 1)
	go func() { ended <- d.Run(context.Background()) }()
	status <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop}
	for {
		select {
		case err := <-ended:
			if err != nil && !errors.Is(err, ErrRemoved) {
				return true, 4
			}
			return false, 0
		case r := <-requests:
			if r.Cmd == svc.Stop {
				status <- svc.Status{State: svc.StopPending, WaitHint: 10000}
				d.Stop(false)
			}
		}
	}
}

// playAgentOfService holds its role and ends when it is told to, or with the code that home's file exitcode says. A file
// "slow" has it drain for as long as it is there.
func playAgentOfService() error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	inst, err := Open(dir)
	if err != nil {
		return err
	}
	notifier, err := NewNotifier()
	if err != nil {
		return err
	}
	if _, err := inst.Hold(context.Background(), RoleAgent); err != nil {
		return err
	}
	listener, err := control.Listen(inst.Home, control.RoleAgent)
	if err != nil {
		return err
	}
	told := make(chan control.Op, 4)
	go func() {
		_ = listener.Serve(context.Background(), func(_ context.Context, r control.Request) (any, error) {
			told <- r.Op
			return control.Status{PID: os.Getpid()}, nil
		})
	}()
	_ = notifier.Ready()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	stopping := false
	for {
		select {
		case op := <-told:
			if op == control.OpRestart {
				return nil
			}
			stopping = stopping || op == control.OpStop
		case <-tick.C:
			if text, err := os.ReadFile(inst.Path("exitcode")); err == nil {
				if code, err := strconv.Atoi(string(text)); err == nil && os.Remove(inst.Path("exitcode")) == nil {
					os.Exit(code)
				}
			}
		}
		if stopping && !exists(inst.Path("slow")) {
			return nil
		}
	}
}

// TestSCMPassesTheSuite runs the cases of every supervisor against a real service manager and real processes: that of Wine,
// because nobody wants tests to register services on a machine that is in use.
func TestSCMPassesTheSuite(t *testing.T) {
	if win.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() != nil {
		t.Skip("needs Wine (make lab-wine): it registers services")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	superviseSuite(t, func(t *testing.T) keptWorld {
		home := filepath.Join(t.TempDir(), "build agent")
		mustDo(t, "make home", os.Mkdir(home, 0o700))
		for _, name := range []string{"devopsDaemon.exe", "devopsAgent.exe"} {
			copyFile(t, self, filepath.Join(home, name))
		}
		inst, err := Open(home)
		mustDo(t, "open", err)
		k := NewSCM(inst)
		t.Cleanup(func() {
			_ = os.Remove(inst.Path("slow"))
			if err := k.Uninstall(context.Background()); err != nil {
				t.Error(err)
			}
		})
		return keptWorld{Supervisor: k, setup: Setup{Home: home, Drain: time.Minute},
			exit: func(t *testing.T, code int) {
				t.Helper()
				before, err := k.State(t.Context())
				mustDo(t, "state", err)
				mustDo(t, "exit code", os.WriteFile(inst.Path("exitcode.new"), []byte(strconv.Itoa(code)), 0o600))
				mustDo(t, "exit code", os.Rename(inst.Path("exitcode.new"), inst.Path("exitcode")))
				deadline := time.Now().Add(20 * time.Second)
				for now := before; now.PID == before.PID; {
					if time.Now().After(deadline) {
						t.Fatalf("the keeper has not noticed the end: %+v", now)
					}
					runtime.Gosched()
					if now, err = k.State(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			},
			slow: func() { mustDo(t, "slow", os.WriteFile(inst.Path("slow"), nil, 0o600)) },
		}
	})
}
