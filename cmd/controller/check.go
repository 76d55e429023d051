package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/controller"
)

// faultsError says that a check found something.
type faultsError struct{ report controller.CheckReport }

// Error counts what was found.
func (e *faultsError) Error() string {
	if n := len(e.report.Faults); n != 1 {
		return fmt.Sprintf("check %s: %d faults", e.report.Dir, n)
	}
	return fmt.Sprintf("check %s: one fault", e.report.Dir)
}

// Hint names the newest backup.
func (e *faultsError) Hint() string {
	if e.report.Backup == "" {
		return "put a backup back with: devopsController restore --force --data " + e.report.Dir + " FILE"
	}
	return "put the newest backup back with: devopsController restore --force --data " + e.report.Dir + " " + e.report.Backup
}

func checkCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Look for damage in the data directory, whether a controller runs there or not", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := controller.Check(cmd.Context(), f.dir())
			if err != nil {
				return err
			}
			switch {
			case f.json:
				err = f.printJSON(report)
			case len(report.Faults) == 0:
				_, err = fmt.Fprintf(f.out, "all is well: %d agents, %d builds, %d lines of logs, %d files of releases and artifacts\n", report.Agents, report.Builds, report.Lines, report.Files)
			default:
				for _, fault := range report.Faults {
					_, err = fmt.Fprintln(f.out, plainLine(fault))
				}
			}
			if err == nil && report.DamagedLog != "" && !f.json {
				_, err = fmt.Fprintf(f.out, "note: an earlier start found a damaged write-ahead log: what was committed behind the damage is lost; its copy is %s: remove it when it is of no more use\n", report.DamagedLog)
			}
			if err == nil && len(report.Faults) > 0 {
				err = &faultsError{report}
			}
			return err
		},
	}
}

func vacuumCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "vacuum", Short: "Give free room in the data base back to the file system, while the controller runs or is stopped", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var done controller.Vacuumed
			c, err := f.open()
			if err == nil {
				var resp *http.Response
				if resp, err = c.request(cmd.Context(), "POST", "/vacuum", nil); err == nil { // it takes as long as it takes
					err = errors.Join(json.NewDecoder(resp.Body).Decode(&done), resp.Body.Close())
				}
				c.http.CloseIdleConnections()
			}
			if down := (*downError)(nil); errors.As(err, &down) && f.url == "" {
				done, err = controller.VacuumStopped(cmd.Context(), f.dir())
			}
			if err != nil {
				return err
			}
			if f.json {
				return f.printJSON(done)
			}
			_, err = fmt.Fprintf(f.out, "%s before, %s now\n", inBytes(done.Before.File), inBytes(done.After.File))
			return err
		},
	}
}
