package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/recovery"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/service/control"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// totalLimit is how long other work on the installation is waited for.
const totalLimit = 5 * time.Minute

// upgrade carries out what an agent has written down and left to us, or else puts programs into place that somebody has put into
// tmp/: an agent of the original, or a person. Then the old processes make room (protocol §4.6). It works alone, and under
// total-lock while programs move.
func upgrade(ctx context.Context, inst *service.Installation, log *slog.Logger) (err error) {
	role, err := inst.Hold(ctx, service.RoleUpgrade)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, role.Release()) }()
	total, err := inst.HoldTotal(ctx, totalLimit)
	if err != nil {
		return err
	}
	u := &upgrading{Home: recovery.New(inst, "", log), log: log}
	u.old, _ = inst.Holder(service.RoleAgent)
	err = u.replace(ctx)
	if err = errors.Join(err, total.Release()); err != nil {
		return err
	}
	old := u.old
	if !u.replaced {
		old = nil
	}
	return retire(ctx, inst, log, old)
}

// upgrading is one run of "upgrader -action=upgrade".
type upgrading struct {
	*recovery.Home
	log      *slog.Logger
	old      *service.Holder // the agent that ran before; nil for none
	replaced bool
}

// replace does everything that needs total-lock.
func (u *upgrading) replace(ctx context.Context) error {
	found, err := u.Journal.Current()
	if err != nil || found.State != journal.None {
		if found.State == journal.Ready || found.State == journal.Trial {
			u.guarded()
		}
		if _, err := u.Finish(ctx); err != nil {
			return err
		}
		u.replaced = found.State == journal.Ready
		if u.OnTrial() { // a keeper that was faster has put everything into place, but itself
			return handOver(ctx, u.Home)
		}
	}
	if id := os.Getenv(journal.EnvUpgrade); id != "" {
		u.log.Info("Nothing is left to do", "upgrade", id) // however it ended: it is not begun once more, from what is in tmp/
		return nil
	}
	items, err := u.inTmp()
	if err != nil {
		return err
	}
	if len(items) == 0 {
		u.log.Info("Nothing to replace")
		return nil
	}
	plan, err := u.vet(ctx, items)
	if err != nil {
		return err
	}
	u.guarded() // it waits for total-lock
	_, err = u.Journal.Begin(plan)
	if errors.Is(err, journal.ErrNothing) {
		u.log.Info("Nothing to replace")
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := u.Finish(ctx); err != nil {
		return err
	}
	u.replaced = true
	return handOver(ctx, u.Home)
}

// guarded starts who watches the new version, and finishes our work should we be killed. Keepers of ours watch it, too.
func (u *upgrading) guarded() {
	how := []string{"--finish"}
	if held, err := u.Inst.Held(service.RoleDaemon); err == nil && held {
		how = append(how, "--daemon")
	}
	if err := spawnGuard(u.Inst, how...); err != nil {
		u.log.Error("New version is not watched", "err", err)
	}
}

// inTmp finds what in tmp/ is another version of what is live. On macOS and Windows, devopsDaemon is what the system keeps, or
// keeps the upgrader: a server's upgrade leaves it alone (protocol §4.6).
func (u *upgrading) inTmp() ([]journal.Item, error) {
	var items []journal.Item
	for _, one := range []struct {
		part journal.Part
		name string
		on   bool
	}{
		{journal.Daemon, "devopsDaemon", runtime.GOOS != "windows" && runtime.GOOS != "darwin"},
		{journal.Agent, "devopsAgent", true},
	} {
		name := service.ProgramName(runtime.GOOS, one.name)
		fresh := u.Inst.Path("tmp", name)
		same, err := sameContent(fresh, u.Inst.Path(name))
		if err != nil {
			return nil, fmt.Errorf("compare programs: %w", err)
		}
		if !same && one.on {
			items = append(items, journal.Item{Part: one.part, From: fresh})
		}
	}
	if len(items) == 0 {
		return nil, nil
	}
	// Ours that keepers start, where home has one: it is replaced when the rest has proved itself.
	name := service.ProgramName(runtime.GOOS, "upgrader")
	fresh := u.Inst.Path("tmp", name)
	if _, err := os.Stat(u.Inst.Path(name)); err == nil && !foreign(fresh) {
		if same, err := sameContent(fresh, u.Inst.Path(name)); err == nil && !same {
			items = append(items, journal.Item{Part: journal.Upgrader, From: fresh})
		}
	}
	return items, nil
}

// vet asks the new programs who they are, and refuses those that do not run, or were taken back here before.
func (u *upgrading) vet(ctx context.Context, items []journal.Item) (journal.Plan, error) {
	_, proof := u.Inst.UpgradePolicy()
	plan := journal.Plan{Kind: journal.FromTmp, Source: "tmp", Proof: proof, Reached: u.reached(ctx)}
	for _, item := range items {
		sum, err := digest(item.From)
		if err != nil {
			return plan, fmt.Errorf("look at the new %s: %w", item.Part, err)
		}
		bad, err := u.Journal.Bad(item.Part, sum)
		if err != nil {
			return plan, err
		}
		if bad != nil {
			return plan, &badError{part: item.Part, attempt: *bad, dir: u.Inst.Path("tmp")}
		}
		if left, err := u.Journal.Left(sum); err != nil {
			return plan, err
		} else if left != nil && item.Part == journal.Agent {
			return plan, &journal.LeftError{Attempt: left}
		}
		if item.Part == journal.Upgrader { // nobody asks the original's, which would not answer
			plan.Items = append(plan.Items, item)
			continue
		}
		if err := makeExecutable(item.From); err != nil {
			return plan, err
		}
		if item.Now, err = recovery.Version(ctx, item.From); err != nil {
			return plan, err
		}
		if item.Part == journal.Agent {
			plan.Foreign = foreign(item.From)
			item.Was, _ = recovery.Version(ctx, u.Inst.Path(service.ProgramName(runtime.GOOS, "devopsAgent"))) // one that does not run has none
		}
		plan.Items = append(plan.Items, item)
	}
	return plan, nil
}

// reached reports whether the agent of now can reach its server. One that cannot be asked is not held against the next.
func (u *upgrading) reached(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var s control.Status
	err := control.Call(ctx, u.Inst.Home, string(service.RoleAgent), control.Request{Op: control.OpStatus}, &s)
	return err == nil && s.Server.LastContact != nil && s.Server.Error == ""
}

// makeExecutable does what the original does with what it has downloaded.
func makeExecutable(path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "start", Path: path, Err: errors.New("is no file")}
	}
	if err == nil && info.Mode().Perm()&0o100 == 0 {
		err = os.Chmod(path, info.Mode().Perm()|0o100)
	}
	if err != nil {
		return fmt.Errorf("make the new program executable: %w", err)
	}
	return nil
}

// badError: a version in tmp/ was taken back here before.
type badError struct {
	part    journal.Part
	attempt journal.Attempt
	dir     string
}

// Error says when, and why.
func (e *badError) Error() string {
	text := fmt.Sprintf("this version of %s was taken back here at %s", e.part, e.attempt.Ended.Local().Format(time.DateTime))
	if e.attempt.Reason != "" {
		text += ": " + e.attempt.Reason
	}
	return text
}

// Hint says how to try it again all the same.
func (e *badError) Hint() string {
	return `"devopsAgent upgrade history" says more; to try it again: devopsAgent upgrade --from ` + e.dir + ` --force`
}

// foreign reports whether a program is not one of ours.
func foreign(path string) bool {
	own, ok := debug.ReadBuildInfo()
	info, err := buildinfo.ReadFile(path)
	return err != nil || ok && info.Main.Path != own.Main.Path
}

// digest is the SHA-256 of a file, in lower-case hex.
func digest(path string) (_ string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// sameContent reports whether a fresh file is the same as the live one. Without a fresh one there is nothing to replace.
func sameContent(fresh, live string) (same bool, err error) {
	f, err := os.Open(fresh)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	l, err := os.Open(live)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	a, b := make([]byte, 1<<16), make([]byte, 1<<16)
	for {
		n, err1 := io.ReadFull(f, a)
		m, err2 := io.ReadFull(l, b)
		if !bytes.Equal(a[:n], b[:m]) {
			return false, nil
		}
		end1, end2 := ended(err1), ended(err2)
		if end1 || end2 {
			return end1 && end2, nil
		}
		if err := errors.Join(err1, err2); err != nil {
			return false, err
		}
	}
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// uninstall stops daemon and agent and takes the agent from its keeper (protocol §3.8). Files, workspaces and running
// builds stay.
func uninstall(ctx context.Context, inst *service.Installation, log *slog.Logger) (err error) {
	role, err := inst.Hold(ctx, service.RoleUpgrade)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, role.Release()) }()
	keeper, err := service.Of(inst)
	switch {
	case errors.Is(err, service.ErrNoKeeper):
		log.Info("No keeper knows this agent")
	case err != nil:
		return err
	default:
		log.Info("Agent is taken from its keeper", "keeper", keeper.Keeper(), "name", keeper.Name())
		if err := keeper.Uninstall(ctx); err != nil {
			return err
		}
	}
	if runtime.GOOS == "windows" {
		return nil
	}
	return service.NewDirect(inst).Stop(ctx) // what runs here without a keeper
}
