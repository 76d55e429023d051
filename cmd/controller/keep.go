package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/controller"
)

// retentionFlags are serve's flags that say what is kept.
type retentionFlags struct {
	builds, logs days
	bytes        amount
	every        days
	copies       int
}

func (k *retentionFlags) add(fl *pflag.FlagSet) {
	fl.Var(&k.builds, "keep-builds", "how long builds are kept after their end; 0 is for ever")
	fl.Var(&k.logs, "keep-logs", "how long their logs are kept; 0 is as long as the builds")
	fl.Var(&k.bytes, "keep-bytes", "how much the data base may hold: the oldest logs, then builds, go first; 0 is no limit")
	fl.Var(&k.every, "backup-every", "how often the controller backs itself up into the folder backups of its data directory; 0 is never")
	fl.IntVar(&k.copies, "backup-keep", 7, "how many of those are kept")
}

func (k *retentionFlags) set(o *controller.Options) {
	o.KeepBuilds, o.KeepLogs, o.KeepBytes = time.Duration(k.builds), time.Duration(k.logs), int64(k.bytes)
	o.BackupEvery, o.BackupKeep = time.Duration(k.every), k.copies
}

func backupCommand(f *flags) *cobra.Command {
	var bare, force bool
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Write a backup of the controller, running or not, into a file", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := os.Lstat(args[0]); err == nil && !force {
				return &existsError{args[0]}
			}
			info, err := controller.SaveBackup(args[0], func(w io.Writer) error { return f.backUp(cmd.Context(), w, !bare) })
			if err != nil {
				return fmt.Errorf("back up: %w", err)
			}
			if f.json {
				return f.printJSON(info)
			}
			size := int64(0)
			if file, err := os.Stat(args[0]); err == nil {
				size = file.Size()
			}
			_, err = fmt.Fprintf(f.out, "%s: %s, of %s\n", args[0], inBytes(size), time.UnixMilli(info.MadeAt).Format(time.DateTime))
			return err
		},
	}
	cmd.Flags().BoolVar(&bare, "without-files", false, "leave out the files of releases and all other folders")
	cmd.Flags().BoolVar(&force, "force", false, "replace the file")
	return cmd
}

// existsError says that a file is not to be replaced.
type existsError struct{ file string }

// Error names it.
func (e *existsError) Error() string { return e.file + " is there already" }

// Hint says how to replace it.
func (e *existsError) Hint() string { return "name another file, or replace it with --force" }

// backUp writes a backup: of the controller that runs, or of the data directory of one that does not.
func (f *flags) backUp(ctx context.Context, w io.Writer, files bool) error {
	c, err := f.open()
	var down *downError
	if err == nil {
		var resp *http.Response
		if resp, err = c.request(ctx, "POST", "/backup", map[string]bool{"files": files}); err == nil {
			_, err = io.Copy(w, resp.Body)
			err = errors.Join(err, resp.Body.Close())
		}
		c.http.CloseIdleConnections()
	}
	if errors.As(err, &down) && f.url == "" {
		return controller.BackupStopped(ctx, f.dir(), cli.Version(), w, files)
	}
	return err
}

func restoreCommand(f *flags) *cobra.Command {
	var o controller.RestoreOptions
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Put a backup into the data directory of a controller that does not run", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = file.Close() }()
			done, err := controller.Restore(cmd.Context(), bufio.NewReaderSize(file, 1<<20), f.dir(), o)
			if err != nil {
				return fmt.Errorf("restore %s: %w", args[0], err)
			}
			if f.json {
				return f.printJSON(done)
			}
			text := fmt.Sprintf("%s has the backup of %s; the next build is #%d\n", f.dir(), time.UnixMilli(done.Backup.MadeAt).Format(time.DateTime), done.Next)
			if done.Kept != "" {
				text += "what was there before is in " + done.Kept + "\n"
			}
			if done.Builds > 0 {
				text += fmt.Sprintf("%d builds were under way in it: how they ended is not known, they are failed\n", done.Builds)
			}
			if done.Rollouts > 0 {
				text += fmt.Sprintf("%d rollouts are paused: devopsController upgrade status, then upgrade resume\n", done.Rollouts)
			}
			_, err = io.WriteString(f.out, text+"start it with: "+serveLine(f.data)+"\n")
			return err
		},
	}
	cmd.Flags().BoolVar(&o.Force, "force", false, "the data directory need not be empty: what is there is kept beside it")
	cmd.Flags().BoolVar(&o.Moved, "moved", false, "the controller was stopped for the backup and has not run since: what was under way goes on")
	return cmd
}
