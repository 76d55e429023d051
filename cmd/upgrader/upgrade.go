package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/devops-agent/devops-agent/service"
)

// totalLimit is how long other work on the installation is waited for.
const totalLimit = 5 * time.Minute

// upgrade looks for new programs in tmp/, alone and under total-lock (protocol §4.6).
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
	defer func() { err = errors.Join(err, total.Release()) }()
	var changed []string
	for _, name := range []string{"devopsDaemon", "devopsAgent"} {
		name = service.ProgramName(runtime.GOOS, name)
		same, err := sameContent(inst.Path("tmp", name), inst.Path(name))
		if err != nil {
			return fmt.Errorf("compare programs: %w", err)
		}
		if !same {
			changed = append(changed, name)
		}
	}
	if len(changed) == 0 {
		log.Info("Nothing to replace")
		return nil
	}
	return &replaceError{changed}
}

// replaceError: there is something to replace, and this version leaves that to the operator.
type replaceError struct{ names []string }

// Error names the programs.
func (e *replaceError) Error() string {
	return fmt.Sprintf("tmp/ has other versions of %v, and this upgrader does not replace programs", e.names)
}

// Hint says how the operator does it.
func (e *replaceError) Hint() string {
	return "stop the agent, copy the files from tmp/ over those in the home directory, and start it again"
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
