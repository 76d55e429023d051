package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"

	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/journal"
)

// noteEnd notes how an agent on trial has ended. systemd runs it after each end of the agent and before the next start, of which
// nobody could tell any more how the one before ended. Where nothing is on trial it does nothing.
func noteEnd(args []string) error {
	var home string
	f := flags()
	f.StringVar(&home, "home", "", "")
	if helped, err := parse(f, args); helped || err != nil {
		return err
	}
	if home == "" {
		return &usageError{errors.New("ended: --home is missing")}
	}
	inst, err := service.Open(home)
	if err != nil {
		return err
	}
	last := endOf(os.Getenv("SERVICE_RESULT"), os.Getenv("EXIT_CODE"), os.Getenv("EXIT_STATUS"))
	return journal.Open(inst, slog.New(slog.DiscardHandler)).Ended(last)
}

// endOf reads what systemd says about an end (systemd.exec(5), "Environment Variables Set on the Service Manager's Behalf"): why
// the service ended, how its process did, and with which exit status or signal. What it does not say stays unknown.
func endOf(result, code, status string) (last journal.Last) {
	switch code {
	case "exited":
		n, err := strconv.Atoi(status)
		if err != nil {
			return last
		}
		last.How, last.Code = fmt.Sprintf("exited with %d", n), &n
	case "killed", "dumped":
		last.How = "killed by signal " + status
		if n := signalNumber(status); n > 0 {
			last.How = fmt.Sprintf("killed by signal %d", n)
		}
		switch result { // where that says more than the signal does
		case "oom-kill":
			last.How += " (oom)"
		case "watchdog", "timeout":
			last.How += " (" + result + ")"
		}
	}
	return last
}
