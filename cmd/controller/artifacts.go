package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/devops-agent/devops-agent/controller"
	"github.com/devops-agent/devops-agent/upgrader/unpack"
)

// artifactFlags are serve's flags about artifacts.
type artifactFlags struct {
	one, build, all amount
	keep            days
}

func (a *artifactFlags) add(fl *pflag.FlagSet) {
	a.one, a.build, a.all, a.keep = 1<<30, 4<<30, 20<<30, days(30*24*time.Hour)
	fl.Var(&a.one, "artifact-max", "how much the files of one artifact may have")
	fl.Var(&a.build, "build-artifacts-max", "how much those of all artifacts of one build may have")
	fl.Var(&a.all, "artifacts-total", "how much all artifacts may take as they are stored: the oldest are removed for new ones")
	fl.Var(&a.keep, "keep-artifacts", "how long artifacts are kept whose build file does not say; 0 is as long as their builds")
}

func (a *artifactFlags) set(o *controller.Options) error {
	for name, n := range map[string]amount{"artifact-max": a.one, "build-artifacts-max": a.build, "artifacts-total": a.all} {
		if n <= 0 {
			return fmt.Errorf("--%s: more than 0 bytes, please", name)
		}
	}
	o.ArtifactBytes, o.BuildArtifactBytes, o.AllArtifactBytes, o.KeepArtifacts = int64(a.one), int64(a.build), int64(a.all), time.Duration(a.keep)
	return nil
}

func artifactCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{Use: "artifact", Short: "List, fetch and remove what builds have saved", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var run string
	var limit int
	list := &cobra.Command{
		Use: "list [BUILD]", Short: "List artifacts: of a build, of a run, or the newest", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"limit": {strconv.Itoa(limit)}}
			path := "/artifacts?"
			switch {
			case len(args) == 1 && run != "":
				return errors.New("a build or --run, not both")
			case len(args) == 1:
				path = "/builds/" + url.PathEscape(args[0]) + "/artifacts?"
			case run != "":
				q.Set("run", run)
			}
			c, err := f.open()
			if err != nil {
				return err
			}
			var all []controller.ListedArtifact
			if err := c.call(cmd.Context(), "GET", path+q.Encode(), nil, &all); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(all)
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "BUILD\tBUILD NAME\tARTIFACT\tENTRIES\tBYTES\tPACKED\tSAVED\tSTATE\tSHA-256")
			for _, a := range all {
				state := "kept"
				if a.Gone {
					state = "removed"
				} else if a.ExpiresAt != 0 {
					state = "until " + time.UnixMilli(a.ExpiresAt).Format(time.DateTime)
				}
				_, _ = fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%s\n", a.Number, plainLine(a.BuildName), plainLine(a.Name), a.Entries, a.Bytes, a.Size,
					time.UnixMilli(a.SavedAt).Format(time.DateTime), state, plainLine(a.SHA256))
			}
			return w.Flush()
		},
	}
	list.Flags().StringVar(&run, "run", "", "`ID` or number of a run: of all of its builds")
	list.Flags().IntVar(&limit, "limit", 20, "how many of the newest")
	var to, output string
	get := &cobra.Command{
		Use: "get BUILD NAME", Short: "Fetch an artifact and unpack it", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if to != "" && output != "" {
				return errors.New("--to or --output, not both")
			}
			return f.getArtifact(cmd.Context(), args[0], args[1], to, output)
		},
	}
	get.Flags().StringVar(&to, "to", "", "`folder` to unpack into, which must not be there (default NAME)")
	get.Flags().StringVarP(&output, "output", "o", "", "write the archive, a .tar.gz, to this `file` instead; - is standard output")
	remove := &cobra.Command{
		Use: "remove BUILD NAME", Short: "Remove an artifact of a build that is over", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			return c.call(cmd.Context(), "DELETE", "/builds/"+url.PathEscape(args[0])+"/artifacts/"+url.PathEscape(args[1]), nil, nil)
		},
	}
	cmd.AddCommand(list, get, remove)
	return cmd
}

// getArtifact fetches an artifact, checks its SHA-256, and unpacks it into a new folder, or writes the archive.
func (f *flags) getArtifact(ctx context.Context, build, name, to, output string) error {
	c, err := f.open()
	if err != nil {
		return err
	}
	var all []controller.ListedArtifact
	at := "/builds/" + url.PathEscape(build) + "/artifacts"
	if err := c.call(ctx, "GET", at, nil, &all); err != nil {
		return err
	}
	var want controller.ListedArtifact
	var names []string
	for _, a := range all {
		names = append(names, a.Name)
		if a.Name == name {
			want = a
		}
	}
	if want.Name == "" {
		return fmt.Errorf("build %s has no artifact %s; it has: %s", build, name, strings.Join(names, ", "))
	}
	if to == "" {
		to = filepath.Base(want.Name)
	}
	if output == "-" {
		return c.fetchArtifact(ctx, at, want, f.out)
	}
	place := output
	if place == "" {
		place = to
		if _, err := os.Lstat(to); err == nil {
			return &folderError{to}
		}
	}
	if err := os.MkdirAll(filepath.Dir(place), 0o777); err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(place), ".artifact-*") // mode 0600, beside where it belongs
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }()
	if err := errors.Join(c.fetchArtifact(ctx, at, want, file), file.Close()); err != nil {
		return err
	}
	if output != "" {
		return os.Rename(file.Name(), output)
	}
	limits := unpack.Limits{Bytes: max(1, want.Bytes), Entries: max(1, want.Entries), Ratio: 2000}
	if err := unpack.Into(ctx, file.Name(), to, limits); err != nil {
		return err
	}
	if f.json {
		return f.printJSON(want)
	}
	_, err = fmt.Fprintf(f.out, "%s: %d bytes\n", to, want.Bytes)
	return err
}

// fetchArtifact writes an archive, and says when it is not what the list says.
func (c *api) fetchArtifact(ctx context.Context, at string, want controller.ListedArtifact, w io.Writer) error {
	resp, err := c.request(ctx, "GET", at+"/"+url.PathEscape(want.Name), nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(resp.Body, want.Size+1))
	if err != nil {
		return fmt.Errorf("fetch artifact %s: %w", want.Name, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n != want.Size || got != want.SHA256 {
		return fmt.Errorf("fetch artifact %s: %d bytes with SHA-256 %s came, not %d with %s", want.Name, n, got, want.Size, want.SHA256)
	}
	return nil
}

// folderError says that a folder is there already.
type folderError struct{ path string }

// Error names it.
func (e *folderError) Error() string { return e.path + " is there already" }

// Hint says what to do.
func (e *folderError) Hint() string { return "name a new folder with --to" }
