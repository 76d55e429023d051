package upgrader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/devops-agent/devops-agent/upgrader/fetch"
	"github.com/devops-agent/devops-agent/upgrader/journal"
	"github.com/devops-agent/devops-agent/upgrader/swap"
	"github.com/devops-agent/devops-agent/upgrader/trust"
	"github.com/devops-agent/devops-agent/upgrader/unpack"
)

// totalLimit is how long other work on the installation is waited for.
const totalLimit = time.Minute

// Live is where a JDK is now that was replaced.
type Live struct {
	Part journal.Part // JDK or JDK17
	Dir  string       // absolute
}

// TakenBackError: new parts were in place, did not work there, and are gone again; or could not be put into place at all.
type TakenBackError struct{ Attempt *journal.Attempt }

// Error says why.
func (e *TakenBackError) Error() string {
	return fmt.Sprintf("upgrade %s was taken back: %s", e.Attempt.ID, e.Attempt.Reason)
}

// Unwrap lets callers see that everything is as it was.
func (e *TakenBackError) Unwrap() error { return errTakenBack }

var errTakenBack = errors.New("taken back")

// Replace puts the parts of a stage into place that need no restart: JDK, worker, script of containers, in this order and in one
// transaction (protocol §4.5). When the agent is replaced as well, that script waits for its next chance (statement 91), and the native worker goes with the agent.
// Each is tried once more where it is then; if one does not work there, all return. It returns
// where JDKs are now. Nothing may build meanwhile.
//
// Of the plan, everything but the items counts. An error is a *TakenBackError when the parts were there.
func (u *Upgrader) Replace(ctx context.Context, s *Stage, plan journal.Plan) (jdks []Live, err error) {
	parts := []journal.Part{journal.JDK, journal.JDK17, journal.Worker}
	if !s.Programs() {
		parts = append(parts, journal.Native, journal.Init)
	}
	plan.Items = s.items(parts...)
	if len(plan.Items) == 0 {
		return nil, nil
	}
	total, err := u.Inst.HoldTotal(ctx, totalLimit)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, total.Release()) }()
	r, err := u.Journal.Begin(plan)
	if err != nil {
		return nil, err
	}
	claims := s.handOver(parts...)
	if err := u.carryOn(ctx, r, s.inv); err != nil {
		return nil, err
	}
	for _, p := range []journal.Part{journal.JDK, journal.JDK17} {
		if m, ok := r.Of(p); ok {
			jdks = append(jdks, Live{p, u.Inst.Path(m.Live)})
		}
	}
	return jdks, u.raise(claims)
}

// carryLimit is how long an upgrade that was written down is tried to be carried out, on a machine that is out of files, memory or
// disk for a moment.
const carryLimit = 3 * time.Minute

// carryOn carries an upgrade out that was written down, and tries on while it is neither here nor there. When it cannot, the next
// start of the agent does.
func (u *Upgrader) carryOn(ctx context.Context, r *journal.Record, inv *Inventory) error {
	end := time.Now().Add(carryLimit)
	for {
		// From here on the end of ctx does not matter: a crash would be carried on, and so may this be, in a moment.
		err := u.carry(context.WithoutCancel(ctx), r, inv)
		found, ferr := u.Journal.Current()
		over := ferr == nil && (found.Record == nil || found.Record.ID != r.ID)
		if err == nil || over || time.Now().After(end) {
			return err
		}
		u.Log.Warn("Upgrade not carried out yet, trying on", "upgrade", r.ID, "err", err)
		timer := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
}

// carry does what is left of it. An error is a *TakenBackError when everything is as it was.
func (u *Upgrader) carry(ctx context.Context, r *journal.Record, inv *Inventory) error {
	found, err := u.Journal.Current()
	switch {
	case err != nil:
		return err
	case found.Record == nil || found.Record.ID != r.ID:
		return u.applied(r)
	case found.State == journal.Ready:
		if err := u.Journal.Apply(ctx); err != nil {
			return err
		}
		if err := u.applied(r); err != nil {
			return err
		}
	case found.State != journal.Trial: // half taken back, or half settled
		if _, err := u.Journal.Undo("", journal.Last{}); err != nil {
			return err
		}
		return u.applied(r)
	}
	if err := u.probe(ctx, r, inv); err != nil {
		result, uerr := u.Journal.Undo(err.Error(), journal.Last{})
		if result.Ended == nil {
			return errors.Join(err, uerr)
		}
		return errors.Join(&TakenBackError{result.Ended}, uerr)
	}
	_, err = u.Journal.Settle()
	return err
}

// applied makes sure that Apply did what it was to do: an upgrade that cannot be carried out is taken back by it.
func (u *Upgrader) applied(r *journal.Record) error {
	found, err := u.Journal.Current()
	if err != nil {
		return err
	}
	if found.Record != nil && found.Record.ID == r.ID {
		return nil
	}
	list, err := u.Journal.History()
	if err != nil {
		return err
	}
	for _, a := range list {
		if a.ID == r.ID && a.State != journal.Settled {
			return &TakenBackError{&a}
		}
	}
	return nil
}

// handOver leaves pieces to the journal, and returns what their signatures claim.
func (s *Stage) handOver(parts ...journal.Part) []trust.Claim {
	var claims []trust.Claim
	for _, p := range parts {
		if one := s.pieces[p]; one != nil {
			claims = append(claims, one.claim)
			delete(s.pieces, p)
		}
	}
	return claims
}

// raise makes the versions of settled parts the oldest that are accepted.
func (u *Upgrader) raise(claims []trust.Claim) error {
	var errs []error
	for _, claim := range claims {
		if claim == (trust.Claim{}) {
			continue
		}
		floor, err := u.floor()
		if err == nil {
			err = floor.Raise(claim)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// probe tries parts where they are live.
func (u *Upgrader) probe(ctx context.Context, r *journal.Record, inv *Inventory) error {
	java := inv.java(func(root string) string { return unpack.Java(root, u.GOOS) })
	for _, m := range r.Moves {
		switch m.Part {
		case journal.JDK, journal.JDK17:
			if java == "" {
				java = unpack.Java(u.Inst.Path(m.Live), u.GOOS)
			}
			if _, err := JavaVersion(ctx, unpack.Java(u.Inst.Path(m.Live), u.GOOS)); err != nil {
				return err
			}
		case journal.Worker:
			if u.JarVersion(ctx, java, u.Inst.Path(m.Live)) == "" {
				return ErrNoWorkerVersion
			}
		}
	}
	return nil
}

// Begin writes down the replacement of the programs of a stage: the next start of anything that recovers carries it out, and so does
// "tmp/upgrader -action=upgrade". Nothing may build from before it until this process has ended. Of the plan, everything but
// the items and Foreign counts.
func (u *Upgrader) Begin(ctx context.Context, s *Stage, plan journal.Plan) (r *journal.Record, err error) {
	parts := []journal.Part{journal.Agent, journal.Native}
	if s.replacesDaemon() {
		parts = append(parts, journal.Daemon)
	}
	if one := s.pieces[journal.Upgrader]; one != nil && s.inv.Has(journal.Upgrader) && Ours(one.path) {
		parts = append(parts, journal.Upgrader)
	}
	plan.Items = s.items(parts...)
	if one := s.pieces[journal.Agent]; one != nil {
		plan.Foreign = !Ours(one.path)
	}
	if r, err = u.BeginPlan(ctx, plan); err == nil {
		s.handOver(parts...)
	}
	return r, err
}

// BeginPlan writes a plan down under total-lock.
func (u *Upgrader) BeginPlan(ctx context.Context, plan journal.Plan) (r *journal.Record, err error) {
	total, err := u.Inst.HoldTotal(ctx, totalLimit)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, total.Release()) }()
	return u.Journal.Begin(plan)
}

// Settle ends the trial of the programs that run, under total-lock, and makes their versions the oldest that are accepted, where
// signatures are looked at. It reports how the upgrade ended; nil when there was nothing on trial any more.
func (u *Upgrader) Settle(ctx context.Context, id string) (ended *journal.Attempt, err error) {
	total, err := u.Inst.HoldTotal(ctx, totalLimit)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, total.Release()) }()
	found, err := u.Journal.Current()
	if err != nil || found.State != journal.Trial || found.Record.ID != id {
		return nil, err
	}
	result, err := u.Journal.Settle()
	if err != nil {
		return result.Ended, err
	}
	return result.Ended, u.raise(u.claims(found.Record))
}

// claims are those of the signatures in tmp/ that are about what is live now.
func (u *Upgrader) claims(r *journal.Record) []trust.Claim {
	var claims []trust.Claim
	if len(u.Policy.Keys) == 0 || r.Kind == journal.Rollback {
		return nil
	}
	for _, m := range r.Moves {
		if m.Tree {
			continue
		}
		sig, err := os.ReadFile(u.Inst.Path("tmp", localName(m.Part, u.GOOS)+sigSuffix))
		if err != nil {
			continue
		}
		claim, err := u.Policy.Check(u.Inst.Path(m.Live), sig, trust.Target{Name: targetName(m.Part), OS: u.GOOS, Arch: u.GOARCH})
		if err == nil {
			claims = append(claims, claim)
		}
	}
	return claims
}

// Sweep removes what ended upgrades and crashes have left: old JDKs that nothing uses, programs older than those kept for a
// rollback, parts of downloads that nobody goes on with. Nothing may be prepared meanwhile; inUse are directories that stay.
func (u *Upgrader) Sweep(ctx context.Context, inUse ...string) (err error) {
	total, err := u.Inst.HoldTotal(ctx, totalLimit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, total.Release()) }()
	u.Journal.Sweep()
	var names []string
	for _, dir := range inUse {
		if name, err := filepath.Rel(u.Inst.Home, dir); err == nil {
			names = append(names, name)
		}
	}
	u.Journal.SweepTrees(names...)
	return errors.Join(fetch.Sweep(u.Inst.Path("tmp")), fetch.Sweep(u.incoming()), swap.Sweep(u.Inst.Path("tmp")))
}
