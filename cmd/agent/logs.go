package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/service"
)

func logsCommand(where *place) *cobra.Command {
	var follow, daemon bool
	lines := 100
	cmd := &cobra.Command{
		Use: "logs", Short: "Show the agent's log", Args: usage(cobra.NoArgs),
		Long: "logs shows the end of logs/devopsAgent.log; with -f it goes on as lines come, over rotations, until Ctrl-C.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, inst, err := where.open()
			if err != nil {
				return err
			}
			name := "devopsAgent"
			if daemon {
				name = "devopsDaemon"
			}
			if lines < 0 {
				lines = 0
			}
			path := inst.Path("logs", name+".log")
			if _, err := os.Stat(path); denied(err) {
				return &rightsError{what: "logs", command: l.command("logs"), err: err}
			}
			if keeper, err := service.Of(inst); err == nil && keeper != nil && !daemon && isTerminal(cmd.ErrOrStderr()) {
				switch keeper.Keeper() {
				case service.KeeperSystemd:
					warn(cmd, "the journal has it too: journalctl -u %s", shell(keeper.Name()))
				case service.KeeperSystemdUser:
					warn(cmd, "the journal has it too: journalctl --user -u %s", shell(keeper.Name()))
				}
			}
			err = showLog(cmd.Context(), cmd.OutOrStdout(), path, lines, follow)
			if errors.Is(err, os.ErrNotExist) {
				return &adviceError{"logs: " + path + " is not there: " + name + " has not run here yet", "to see why, type: " + l.command("status")}
			}
			if err != nil {
				return fmt.Errorf("show log: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as lines come")
	cmd.Flags().IntVarP(&lines, "lines", "n", lines, "how many lines of the past")
	cmd.Flags().BoolVar(&daemon, "daemon", false, "the log of devopsDaemon instead")
	return cmd
}

// showLog writes the last lines of a log, of its rotated files where the newest is short, and with follow what comes.
func showLog(ctx context.Context, out io.Writer, path string, lines int, follow bool) error {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && follow {
		file, err = nil, nil // it will come
	}
	if err != nil {
		return err
	}
	var end int64
	if file != nil {
		defer func() { _ = file.Close() }()
		tail, length, err := lastLines(file, lines)
		if err != nil {
			return err
		}
		end = length
		if missing := lines - bytes.Count(tail, []byte("\n")); missing > 0 {
			if older, err := os.Open(rotated(path)); err == nil {
				before, _, err := lastLines(older, missing)
				_ = older.Close()
				if err == nil {
					tail = append(before, tail...)
				}
			}
		}
		if _, err := out.Write(tail); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	return followLog(ctx, out, path, file, end)
}

// rotated is the newest file that a log was renamed to; lumberjack puts the time, in a form that sorts, before the ending.
func rotated(path string) string {
	ext := filepath.Ext(path)
	names, err := filepath.Glob(path[:len(path)-len(ext)] + "-*" + ext)
	if err != nil || len(names) == 0 {
		return ""
	}
	return slices.Max(names)
}

// lastLines reads a file backwards to the beginning of its last n lines. end is the place behind them.
func lastLines(file *os.File, n int) (tail []byte, end int64, err error) {
	info, err := file.Stat()
	if err != nil {
		return nil, 0, err
	}
	end = info.Size()
	if n == 0 {
		return nil, end, nil
	}
	const block, most = 64 << 10, 64 << 20
	piece := make([]byte, block)
	begin, left := end, n // of the lines; those still to be found
	for begin > 0 && end-begin < most {
		size := min(block, begin)
		if _, err := file.ReadAt(piece[:size], begin-size); err != nil {
			return nil, 0, err
		}
		text := piece[:size]
		if begin == end { // the end of the last line begins none
			text = bytes.TrimSuffix(text, []byte("\n"))
		}
		for left > 0 {
			i := bytes.LastIndexByte(text, '\n')
			if i < 0 {
				break
			}
			if left--; left == 0 {
				begin = begin - size + int64(i) + 1
				break
			}
			text = text[:i]
		}
		if left == 0 {
			break
		}
		begin -= size
	}
	tail = make([]byte, end-begin)
	_, err = file.ReadAt(tail, begin)
	return tail, end, err
}

// followLog copies what is added to a log, from end on, until the context ends. A log that is renamed is read to its end
// first, and then the new one from its beginning; one that is cut off is read again.
func followLog(ctx context.Context, out io.Writer, path string, file *os.File, end int64) error {
	own := false // file is ours to close
	closeFile := func() {
		if own && file != nil {
			_ = file.Close()
		}
	}
	defer func() { closeFile() }()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		for file != nil {
			n, err := io.Copy(out, io.NewSectionReader(file, end, 1<<62))
			end += n
			if err != nil {
				return err
			}
			now, err := os.Stat(path)
			if err != nil {
				break // between the renaming and the new one
			}
			then, err := file.Stat()
			if err != nil {
				return err
			}
			if os.SameFile(now, then) {
				if now.Size() < end {
					end = 0
					continue
				}
				break
			}
			if then.Size() > end {
				continue // lines that came before the renaming
			}
			closeFile()
			file = nil
		}
		if file == nil {
			fresh, err := os.Open(path)
			if err == nil {
				file, own, end = fresh, true, 0
				continue
			}
			if !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
