package service

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/devops-agent/devops-agent/service/control"
)

// child is an agent that we started.
type child struct {
	cmd   *exec.Cmd
	pid   int
	born  time.Time
	file  Stamp
	total *Lock // ours until the child has its role
	piped bool  // it has our pipes

	ended   chan error // of Wait
	words   chan word
	said    *lastWords
	readers sync.WaitGroup
	done    chan struct{} // closed when nobody listens to words any more
	pipes   []*os.File    // our ends
}

// launch starts cmd with a pipe for what it tells its keeper, and one for standard error, which goes to also, too, unless that is
// nil. It closes also at the end, or if there is nothing to start.
func launch(cmd *exec.Cmd, start func(*exec.Cmd) error, log *slog.Logger, also io.WriteCloser) (*child, error) {
	if start == nil {
		start = (*exec.Cmd).Start
	}
	c := &child{cmd: cmd, ended: make(chan error, 1), words: make(chan word), said: &lastWords{also: also}, done: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
	}()
	if !aloof(cmd) {
		for range 2 {
			r, w, err := os.Pipe()
			if err != nil {
				c.close()
				return nil, fmt.Errorf("make a pipe: %w", err)
			}
			c.pipes, theirs = append(c.pipes, r), append(theirs, w)
		}
		cmd.Stderr = theirs[1]
		if err := handOver(cmd, theirs[0]); err != nil {
			c.close()
			return nil, fmt.Errorf("hand a pipe over: %w", err)
		}
		c.piped = true
	}
	c.born = time.Now()
	if err := start(cmd); err != nil {
		c.close()
		return nil, err
	}
	c.pid = cmd.Process.Pid
	if c.piped {
		c.readers.Go(func() { readWords(c.pipes[0], c.words, c.done) })
		c.readers.Go(func() { c.said.read(c.pipes[1], log) })
	}
	go func() { c.ended <- cmd.Wait() }()
	return c, nil
}

// close ends the readers. It is called once, when the child has ended or was never started. It does not wait for ever:
// where something that the agent started holds a pipe, Windows does not let go of a read.
func (c *child) close() {
	close(c.done)
	closed := make(chan struct{})
	go func() {
		for _, p := range c.pipes {
			_ = p.Close()
		}
		c.readers.Wait()
		if c.said.also != nil {
			_ = c.said.also.Close()
		}
		close(closed)
	}()
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
	}
}

// ownEnd is why we ended a child.
type ownEnd string

const (
	endHung    ownEnd = "hung"
	endStopped ownEnd = "stopped"
	endRestart ownEnd = "restart"
)

// mind sees a child through to its end, and waits before the next one if that is called for.
func (r *keeping) mind(ctx context.Context, c *child) error {
	w := &minding{keeping: r, child: c, lastWord: c.born, answered: c.born}
	calls, cancel := context.WithCancel(ctx)
	w.calls = calls
	w.answers = make(chan answer, 4)
	exit := w.run()
	lived := time.Since(c.born)
	cancel()
	w.busy.Wait()
	w.release()
	how, outside := describe(exit, c.cmd.ProcessState)
	if w.why == "" && exit != nil && !(outside && signalsTell) {
		c.said.drain(&c.readers, restOf)
		outside = outside && c.said.text() == "" // else it has said why it ended
	}
	if w.why == endHung {
		c.said.drain(&c.readers, restOfStack)
	}
	c.close()
	r.reap.reap(0)
	code := c.cmd.ProcessState.ExitCode() // -1 also when there is no state
	if code == ExitStayDown {
		if err := r.Installation.MarkRemoved(); err != nil {
			r.Log.Warn("Removed agent not marked", "err", err)
		}
	}
	r.note(func(s *control.DaemonStatus) { s.Child, s.Ready, s.Sentence, s.LastExit = 0, false, "", how })
	if code == ExitStayDown {
		r.Log.Info("Agent was removed, so the daemon ends, too", "pid", c.pid)
		return ErrRemoved
	}
	if w.stopping > 0 {
		r.Log.Info("Agent stopped", "pid", c.pid, "how", how)
		return errStopped
	}
	now := time.Now()
	if lived >= r.patience.life {
		r.pace.forget(now)
	}
	words := c.said.text()
	if words != "" {
		how += ": " + words
	}
	r.last = Ending{How: how}
	if code >= 0 {
		r.last.Code = &code
	}
	if lived >= r.patience.life {
		r.hurried = 0
	}
	if r.Pending != nil && r.hurried < mostHurried && r.Pending() {
		r.hurried++
		r.note(func(s *control.DaemonStatus) { s.LastExit = how })
		r.Log.Info("Agent ended in an upgrade", "pid", c.pid, "how", how, "after", lived.Round(time.Millisecond))
		return nil
	}
	switch {
	case w.why != "":
		r.Log.Info("Agent ended", "pid", c.pid, "how", how, "why", string(w.why))
		return nil
	case outside, code == ExitOK && w.ready:
		d := r.pace.blow(now, w.ready)
		if d == 0 {
			r.Log.Info("Agent ended", "pid", c.pid, "how", how, "after", lived.Round(time.Millisecond))
			return nil
		}
		return r.pause(ctx, d, "Agent is ended again and again", how, lived)
	case code == ExitOK:
		if free, err := r.Installation.free(RoleAgent); err == nil && !free {
			r.Log.Info("Agent ended, because another one runs here", "pid", c.pid)
			return nil
		}
		if lived >= r.patience.life {
			return nil
		}
	}
	return r.pause(ctx, r.pace.fault(now, w.ready), "Agent ended", how, lived)
}

// minding is the time with one child.
type minding struct {
	*keeping
	*child
	calls    context.Context
	busy     sync.WaitGroup
	answers  chan answer
	asking   bool
	answered time.Time // by its control socket, when it has no pipe to talk on
	asked    time.Time

	heard    bool // it has talked: the watchdog looks
	ready    bool
	reload   bool // as soon as it hears that
	lastWord time.Time
	sentence string
	stopping int       // times it was told to
	until    time.Time // it was promised so much time to stop
	why      ownEnd
	killAt   time.Time // zero for not yet
}

// answer is what came of a question.
type answer struct {
	op   control.Op
	err  error
	idle bool // of control.OpStatus to an agent that somebody else started: it builds nothing, and upgrades nothing
}

func (w *minding) run() error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		due := w.due(time.Now())
		var tick <-chan time.Time
		if !due.IsZero() {
			timer.Reset(time.Until(due))
			tick = timer.C
		}
		select {
		case err := <-w.ended:
			return err
		case said := <-w.words:
			w.hear(said)
			continue
		default:
		}
		select {
		case err := <-w.ended:
			return err
		case said := <-w.words:
			w.hear(said)
		case o := <-w.orders:
			w.obey(o)
		case a := <-w.answers:
			w.take(a)
		case <-w.reap.childEnded():
			w.reap.reap(w.pid)
		case <-tick:
			now := time.Now()
			if now.Sub(due) > w.patience.late { // we were stopped, or the machine: the agent's silence says nothing
				w.lastWord, w.answered = now, now
				continue
			}
			w.act(now)
		}
	}
}

// due is when act has something to do, zero for never.
func (w *minding) due(time.Time) time.Time {
	var first time.Time
	soonest := func(t time.Time) {
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	if w.total != nil {
		soonest(w.totalUntil())
	}
	switch {
	case !w.killAt.IsZero():
		soonest(w.killAt)
	case w.stopping > 0:
		soonest(w.stopUntil())
	case w.watched():
		soonest(w.lastWord.Add(w.patience.watchdog))
	case !w.piped && !w.asking:
		soonest(w.asked.Add(w.patience.ask))
		soonest(w.answered.Add(w.patience.watchdog))
	}
	return first
}

// watched reports whether silence means that the agent hangs: it has talked in this life, or its program has in another. An
// original never does.
func (w *minding) watched() bool { return w.heard || w.piped && w.file == w.spoke }

func (w *minding) totalUntil() time.Time {
	if w.file == w.spoke {
		return w.born.Add(knownTotal)
	}
	return w.born.Add(strangerTotal)
}

func (w *minding) stopUntil() time.Time {
	until := w.lastWord.Add(w.patience.stop)
	if w.until.After(until) {
		until = w.until
	}
	return until
}

// act does what is due.
func (w *minding) act(now time.Time) {
	if w.total != nil && !now.Before(w.totalUntil()) {
		w.release()
	}
	switch {
	case !w.killAt.IsZero():
		if !now.Before(w.killAt) {
			_ = w.cmd.Process.Kill()
			w.killAt = now.Add(w.patience.abort)
		}
	case w.stopping > 0:
		if !now.Before(w.stopUntil()) {
			w.Log.Error("Agent does not stop, so it is killed", "pid", w.pid, "silent_for", now.Sub(w.lastWord).Round(time.Second))
			w.why, w.killAt = endStopped, now.Add(w.patience.abort)
			_ = w.cmd.Process.Kill()
		}
	case w.watched():
		if !now.Before(w.lastWord.Add(w.patience.watchdog)) {
			w.hung(now.Sub(w.lastWord))
		}
	case !w.piped:
		if !now.Before(w.answered.Add(w.patience.watchdog)) {
			w.hung(now.Sub(w.answered))
		} else if !w.asking && !now.Before(w.asked.Add(w.patience.ask)) {
			w.asked = now
			w.ask(control.Request{Op: control.OpStatus})
		}
	}
}

// hung has the agent write down where it hangs, and ends it.
func (w *minding) hung(silent time.Duration) {
	w.Log.Error("Agent hangs, so it is replaced", "pid", w.pid, "silent_for", silent.Round(time.Second), "status", w.sentence)
	w.why, w.killAt = endHung, time.Now().Add(w.patience.abort)
	if err := abort(w.cmd.Process); err != nil {
		w.killAt = time.Now()
	}
}

// release gives total-lock back.
func (w *minding) release() {
	if w.total == nil {
		return
	}
	if err := w.total.Release(); err != nil {
		w.Log.Error("total-lock not given back", "err", err)
	}
	w.total = nil
}

// hear takes one message of the child.
func (w *minding) hear(said word) {
	now := time.Now()
	w.heard, w.lastWord = true, now
	w.spoke = w.file
	w.release()
	if said.ready && !w.ready {
		w.ready = true
	}
	if said.status != "" {
		w.sentence = said.status
	}
	if said.extend > 0 {
		w.until = now.Add(said.extend)
	}
	ready, sentence := w.ready, w.sentence
	w.note(func(s *control.DaemonStatus) { s.Ready, s.Sentence = ready, sentence })
	if w.reload && w.ready {
		w.tellReload()
	}
}

func (w *minding) obey(o order) {
	switch o {
	case orderStop, orderStopNow:
		w.stopping++
		w.lastWord = time.Now()
		if w.why == endRestart { // it has more time than that
			w.why, w.killAt = "", time.Time{}
		}
		now := w.stopping > 1 || o == orderStopNow
		w.Log.Info("Agent is told to stop", "pid", w.pid, "at_once", now)
		// A second SIGTERM means at once, but two that come together arrive as one.
		if !terminate(w.cmd.Process) || o == orderStopNow {
			w.ask(control.Request{Op: control.OpStop, Now: now})
		}
	case orderRestart:
		if w.stopping > 0 || w.why != "" {
			return
		}
		w.why, w.killAt = endRestart, time.Now().Add(w.patience.restart)
		w.ask(control.Request{Op: control.OpRestart})
	case orderReload:
		if w.piped && !w.heard { // too young to hear it, or an original, which ends of SIGHUP
			w.reload = true
			return
		}
		w.tellReload()
	case orderWake:
	}
}

func (w *minding) tellReload() {
	w.reload = false
	if !w.heard || !hangUp(w.cmd.Process) {
		w.ask(control.Request{Op: control.OpReload})
	}
}

// ask asks the agent by its control socket; the answer comes by answers.
func (w *minding) ask(q control.Request) { w.askAfter(0, q) }

// An agent that has not opened its control socket yet is asked again: it may hold builds of the one before.
const (
	tooYoung = 5 * time.Second
	askAgain = 100 * time.Millisecond
)

func (w *minding) askAfter(d time.Duration, q control.Request) {
	w.asking = true
	w.busy.Go(func() {
		if d > 0 {
			timer := time.NewTimer(d)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-w.calls.Done():
				return
			}
		}
		err := control.Call(w.calls, w.Installation.Home, string(RoleAgent), q, nil)
		select {
		case w.answers <- answer{op: q.Op, err: err}:
		case <-w.calls.Done():
		}
	})
}

// take takes the answer to ask.
func (w *minding) take(a answer) {
	w.asking = false
	now := time.Now()
	if a.err == nil || errors.Is(a.err, control.ErrNobody) { // nobody: an original, which cannot be asked
		w.answered = now
	}
	if a.err == nil {
		if w.stopping > 0 {
			w.lastWord = now
		}
		return
	}
	switch a.op {
	case control.OpStop:
		if errors.Is(a.err, control.ErrNobody) && !w.heard && now.Sub(w.born) < tooYoung {
			w.askAfter(askAgain, control.Request{Op: control.OpStop, Now: w.stopping > 1})
			return
		}
		if !terminate(w.cmd.Process) {
			w.Log.Warn("Agent cannot be told to stop, so it is killed", "pid", w.pid, "err", a.err)
			_ = w.cmd.Process.Kill()
		}
	case control.OpRestart:
		w.Log.Warn("Agent cannot be told to make room, so it is killed; its builds go on", "pid", w.pid, "err", a.err)
		_ = w.cmd.Process.Kill()
	case control.OpReload:
		w.Log.Warn("Agent does not read its configuration again", "err", a.err)
	}
}

// word is one message of an agent to its keeper (sd_notify(3)), as far as a daemon cares.
type word struct {
	ready  bool
	status string
	extend time.Duration
}

// mostLine is the longest line of an agent that is read as a whole, in bytes.
const mostLine = 4096

// readWords reads messages until the pipe ends: assignments, a line each, and an empty line after each message. What is no
// assignment, or too long, is passed over.
func readWords(r io.Reader, to chan<- word, done <-chan struct{}) {
	var w word
	any := false
	_ = readLines(r, func(line []byte) bool {
		if len(line) > 0 {
			any = w.assign(string(line)) || any
			return true
		}
		if any {
			select {
			case to <- w:
			case <-done:
				return false
			}
		}
		w, any = word{}, false
		return true
	})
}

// assign takes one line of a message and reports whether it was one.
func (w *word) assign(line string) bool {
	name, value, ok := strings.Cut(line, "=")
	if !ok || name == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
		return false
	}
	switch name {
	case "READY":
		w.ready = value == "1"
	case "STATUS":
		w.status = strings.ToValidUTF8(value, "\ufffd")
	case "EXTEND_TIMEOUT_USEC":
		if us, err := strconv.ParseInt(value, 10, 64); err == nil && us > 0 {
			w.extend = time.Duration(min(us, int64(24*time.Hour/time.Microsecond))) * time.Microsecond
		}
	}
	return true
}

// readLines calls take with each line, without its end, until that says no or there are no more. Of a line that is too long,
// the rest is dropped.
func readLines(r io.Reader, take func(line []byte) bool) error {
	b := bufio.NewReaderSize(r, mostLine)
	for {
		line, err := b.ReadSlice('\n')
		rest := err
		for errors.Is(rest, bufio.ErrBufferFull) {
			line = append([]byte(nil), line...) // the buffer is about to be used again
			for errors.Is(rest, bufio.ErrBufferFull) {
				_, rest = b.ReadSlice('\n')
			}
			err = rest
		}
		if (err == nil || len(line) > 0) && !take(bytes.TrimRight(line, "\r\n")) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// lastWords keeps the end of what an agent writes to standard error, for the line that says why it ended.
type lastWords struct {
	also io.WriteCloser // gets every line as well; nil for nobody. Only the reader writes there

	mu    sync.Mutex
	lines []string
	cause string // the first line that looks like the reason
}

const (
	keptLines   = 8
	linesMinute = 2000 // that get into the log
	mostWords   = 400  // bytes of text

	restOf      = 50 * time.Millisecond // for the rest of what an agent said that has ended
	restOfStack = time.Second           // the same for one that was to write down where it hangs
)

// read takes what the agent says until its end, and puts it into the log.
func (l *lastWords) read(r io.Reader, log *slog.Logger) {
	var began time.Time
	written := 0
	_ = readLines(r, func(raw []byte) bool {
		line := strings.ToValidUTF8(strings.TrimSpace(string(raw)), "\ufffd")
		if line == "" {
			return true
		}
		l.add(line)
		if l.also != nil {
			_, _ = io.WriteString(l.also, line+"\n") // a full disk costs the copy
		}
		if now := time.Now(); now.Sub(began) > time.Minute {
			began, written = now, 0
		}
		if written++; written <= linesMinute {
			log.Info("Agent says", "line", line)
		} else if written == linesMinute+1 {
			log.Warn("Agent says too much; the rest of this minute is dropped")
		}
		return true
	})
}

func (l *lastWords) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause == "" {
		for _, begin := range []string{"panic: ", "fatal error: ", "devopsAgent: "} {
			if strings.HasPrefix(line, begin) {
				l.cause = line
			}
		}
	}
	l.lines = append(l.lines, line)
	if len(l.lines) > keptLines {
		l.lines = append(l.lines[:0], l.lines[1:]...)
	}
}

// drain waits a moment for the rest.
func (l *lastWords) drain(readers *sync.WaitGroup, limit time.Duration) {
	all := make(chan struct{})
	go func() { readers.Wait(); close(all) }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-all:
	case <-timer.C: // something the agent started holds the pipe
	}
}

// text is the reason in the agent's own words, as far as they can be told from the rest.
func (l *lastWords) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.cause
	for i := len(l.lines) - 1; i >= 0 && text == ""; i-- {
		if !strings.HasPrefix(l.lines[i], "hint: ") {
			text = l.lines[i]
		}
	}
	if len(text) > mostWords {
		text = strings.ToValidUTF8(text[:mostWords], "") + " …"
	}
	return text
}

// describe says how a child ended, and whether that came from outside.
func describe(err error, state *os.ProcessState) (how string, outside bool) {
	if state == nil {
		return fmt.Sprint(err), false
	}
	return state.String(), killedFromOutside(state)
}
