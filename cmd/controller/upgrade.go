package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/controller"
)

func upgradeCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "upgrade", Short: "Give agents another version: a few first, then the others, and back again",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.NoArgs(cmd, args); err != nil {
				return &usageError{cmd: cmd, args: args, err: err}
			}
			return nil
		},
		SuggestionsMinimumDistance: 2,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(upgradeAddCommand(f), upgradeListCommand(f), upgradeRemoveCommand(f), upgradeOfferCommand(f), upgradeStatusCommand(f),
		upgradePauseCommand(f), upgradeResumeCommand(f), upgradeRollbackCommand(f))
	return cmd
}

// nameError is a file that no agent would ask for.
type nameError struct{ path string }

// Error names the file.
func (e *nameError) Error() string { return e.path + ": no agent asks for a file of this name" }

// Hint says which names there are.
func (e *nameError) Hint() string {
	return "names are devopsAgent_linux, devopsDaemon_linux_arm64, upgrader_macos, upgrader.exe …, worker-agent.jar, and with their folders jre/linux/jdk17.zip, script/linux/agent_docker_init.sh"
}

const signatureSuffix = ".minisig"

// collect finds the names of files, and of all that have one in folders, with the signatures beside them.
func collect(args []string) (files map[string]string, err error) {
	files = make(map[string]string)
	add := func(path string) error {
		full, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		name := controller.StoreName(filepath.ToSlash(full))
		if name == "" {
			return &nameError{path}
		}
		if other, twice := files[name]; twice && other != full {
			return fmt.Errorf("%s and %s are both %s", other, full, name)
		}
		files[name] = full
		if _, err := os.Stat(full + signatureSuffix); err == nil && !strings.HasSuffix(name, signatureSuffix) {
			files[name+signatureSuffix] = full + signatureSuffix
		}
		return nil
	}
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			if err := add(arg); err != nil {
				return nil, err
			}
			continue
		}
		before := len(files)
		err = filepath.WalkDir(arg, func(path string, entry fs.DirEntry, err error) error {
			var other *nameError
			if err == nil && !entry.IsDir() {
				if err = add(path); errors.As(err, &other) {
					err = nil // whatever else lies in the folder
				}
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		if len(files) == before {
			return nil, &nameError{arg}
		}
	}
	return files, nil
}

// isAgent reports whether a file of a release is an agent, which prints the release's version.
func isAgent(name string) bool {
	base := filepath.Base(name)
	return strings.HasPrefix(base, "devopsAgent") && !strings.HasSuffix(base, signatureSuffix)
}

// mentions reports whether a file has a text in it: a program that prints a version has it in its data.
func mentions(file, text string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	buf, kept := make([]byte, 1<<20), 0
	for {
		n, err := f.Read(buf[kept:])
		if bytes.Contains(buf[:kept+n], []byte(text)) {
			return true, nil
		}
		switch {
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("read %s: %w", file, err)
		}
		tail := buf[max(0, kept+n-len(text)) : kept+n] // its begin may be here
		kept = copy(buf, tail)
	}
}

func upgradeAddCommand(f *flags) *cobra.Command {
	var in controller.NewRelease
	cmd := &cobra.Command{
		Use: "add FILES… --version V", Short: "Add programs, a worker or a JDK under their BK-CI names as a release",
		Long: `Add files under their BK-CI names as a release, with the signatures (FILE.minisig) beside them. Name files, or
folders of which all files with such a name are taken. Adding to a release that is there brings another platform.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := collect(args)
			if err != nil {
				return err
			}
			c, err := f.open()
			if err != nil {
				return err
			}
			defer c.http.CloseIdleConnections()
			for name, path := range files {
				if !isAgent(name) {
					continue
				}
				known, err := mentions(path, in.Version)
				if err != nil {
					return err
				}
				if !known {
					_, _ = fmt.Fprintf(f.err, "warning: %s: %s is not written anywhere in it; agents refuse a program that prints another version\n", path, in.Version)
				}
			}
			for name, path := range files {
				digest, err := c.upload(cmd.Context(), path)
				if err != nil {
					return fmt.Errorf("upload %s: %w", path, err)
				}
				in.Files = append(in.Files, struct {
					Name   string `json:"name"`
					SHA256 string `json:"sha256"`
				}{name, digest})
			}
			var made controller.Release
			if err := c.call(cmd.Context(), "POST", "/releases", in, &made); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(made)
			}
			return f.printReleases([]controller.Release{made})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&in.Version, "version", "", "the `version` that the programs print")
	fl.StringVar(&in.Worker, "worker-version", "", "the `version` that worker-agent.jar prints (default: that of the programs)")
	fl.StringVar(&in.JDK, "jdk-version", "", "third line of the JDK's java -version, a `text`")
	_ = cmd.MarkFlagRequired("version") // it is there
	return cmd
}

// upload sends a file that the controller does not have and returns its SHA-256.
func (c *api) upload(ctx context.Context, path string) (digest string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		return "", err
	}
	digest = hex.EncodeToString(h.Sum(nil))
	var refused *apiError
	switch err := c.call(ctx, "GET", "/objects/"+digest, nil, nil); {
	case err == nil:
		return digest, nil
	case !errors.As(err, &refused) || refused.code != http.StatusNotFound:
		return "", err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	resp, err := c.send(ctx, "PUT", "/objects/"+digest, file)
	if err != nil {
		return "", err
	}
	return digest, resp.Body.Close()
}

// platforms are the systems that a release has programs or JDKs for, in words.
func platforms(r controller.Release) string {
	var list []string
	for _, file := range r.Files {
		text := ""
		if rest, is := strings.CutPrefix(file.Name, "upgrade/devopsAgent"); is {
			if text = strings.TrimPrefix(rest, "_"); rest == ".exe" {
				text = "windows"
			}
		} else if rest, is := strings.CutPrefix(file.Name, "jre/"); is {
			text, _, _ = strings.Cut(rest, "/")
		}
		if text != "" && !strings.HasSuffix(text, signatureSuffix) && !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	return strings.Join(list, ",")
}

func (f *flags) printReleases(list []controller.Release) error {
	w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "VERSION\tADDED\tFILES\tSIGNED\tSIZE\tPLATFORMS\tWORKER\tJDK")
	for _, r := range list {
		files, signed, size := 0, 0, int64(0)
		for _, file := range r.Files {
			if strings.HasSuffix(file.Name, signatureSuffix) {
				signed++
				continue
			}
			files++
			size += file.Size
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\n", r.Version, when(r.AddedAt), files, signed, inBytes(size), platforms(r), plainLine(r.Worker), plainLine(r.JDK))
	}
	return w.Flush()
}

func when(at int64) string {
	if at == 0 {
		return ""
	}
	return time.UnixMilli(at).Format(time.DateTime)
}

func upgradeListCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List releases, the newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			var list []controller.Release
			if err := c.call(cmd.Context(), "GET", "/releases", nil, &list); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(list)
			}
			if len(list) == 0 {
				_, _ = fmt.Fprintln(f.err, "no release yet: devopsController upgrade add FILES… --version V")
			}
			return f.printReleases(list)
		},
	}
}

func upgradeRemoveCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "remove VERSION", Short: "Remove a release that no rollout needs", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), "DELETE", "/releases/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(map[string]string{"version": args[0]})
			}
			_, err = fmt.Fprintf(f.out, "release %s removed\n", args[0])
			return err
		},
	}
}

func upgradeOfferCommand(f *flags) *cobra.Command {
	var in controller.Offer
	var canary int
	cmd := &cobra.Command{
		Use: "offer VERSION", Short: "Offer a release to agents: to a few first, then to the others", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Version, in.Canary = args[0], &canary
			c, err := f.open()
			if err != nil {
				return err
			}
			var r controller.RolloutInfo
			if err := c.call(cmd.Context(), "POST", "/rollouts", in, &r); err != nil {
				return err
			}
			return f.showRollout(r)
		},
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&in.Labels, "labels", nil, "only to agents with all of these `labels`; os=, arch=, host=, id= and project= name their properties")
	fl.IntVar(&canary, "canary", 1, "how many agents try it first; 0 is none")
	fl.IntVar(&in.MaxFailures, "max-failures", 0, "how many may fail before it halts by itself")
	fl.IntVar(&in.Parallel, "parallel", 0, "how many are upgraded at once after the canaries (default: a tenth, at least one)")
	fl.StringVar(&in.Window, "window", "", "only at this `time` of the controller's day, HH:MM-HH:MM")
	return cmd
}

func (f *flags) showRollout(r controller.RolloutInfo) error {
	if f.json {
		return f.printJSON(r)
	}
	return f.printRollout(r)
}

// bar draws how much of a whole is done.
func bar(done, all int) string {
	const width = 20
	filled := 0
	if all > 0 {
		filled = min(width, done*width/all)
	}
	return "[" + strings.Repeat("#", filled) + strings.Repeat("-", width-filled) + "]"
}

// printRollout shows a rollout to a person: its state, how far it is, and what failed.
func (f *flags) printRollout(r controller.RolloutInfo) error {
	n := r.Counts
	text := fmt.Sprintf("rollout %d: %s is %s", r.ID, r.Version, r.State)
	if r.ReplacedBy != 0 {
		text += fmt.Sprintf(" (replaced by rollout %d)", r.ReplacedBy)
	}
	if r.Reason != "" {
		text += ": " + plainLine(r.Reason)
	}
	to := "all agents"
	if len(r.Labels) > 0 {
		to = "agents with " + strings.Join(r.Labels, ",")
	}
	text += fmt.Sprintf("\n  to %s, since %s", to, when(r.CreatedAt))
	if r.Window != "" {
		text += ", from " + strings.Replace(r.Window, "-", " to ", 1)
	}
	if r.State == controller.RolledBack {
		text += fmt.Sprintf("\n  %s %d of %d are back", bar(n[controller.Reverted], n[controller.Reverted]+n[controller.Reverting]), n[controller.Reverted], n[controller.Reverted]+n[controller.Reverting])
	} else {
		text += fmt.Sprintf("\n  %s %d of %d have it", bar(n[controller.Upgraded], r.Matching), n[controller.Upgraded], r.Matching)
	}
	for _, part := range []struct {
		n    int
		what string
	}{{n[controller.Upgraded] - r.Proven, "not settled yet"}, {n[controller.Downloading], "downloading"}, {n[controller.Offered], "told"},
		{n[controller.Faulty], "failed"}, {n[controller.Waiting] - r.Offline, "waiting"}, {r.Offline, "offline"}} {
		if part.n > 0 && (r.State != controller.RolledBack || part.what == "failed") {
			text += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	if r.State == controller.InCanary {
		text += fmt.Sprintf("\n  %d of %d canaries were told so far", r.Canaries, r.Canary)
	}
	if _, err := fmt.Fprintln(f.out, text); err != nil {
		return err
	}
	for _, m := range r.Failures {
		if _, err := fmt.Fprintf(f.out, "  failed: %s (agent %s): %s\n", plainLine(m.HostName), m.Agent, plainLine(m.Reason)); err != nil {
			return err
		}
	}
	if hint := nextStep(r); hint != "" {
		_, err := fmt.Fprintln(f.out, "  "+hint)
		return err
	}
	return nil
}

// nextStep says what to type next.
func nextStep(r controller.RolloutInfo) string {
	switch {
	case r.ReplacedBy != 0:
		return ""
	case r.State == controller.Halted:
		return "go on with: devopsController upgrade resume; give up with: devopsController upgrade rollback"
	case r.State == controller.Paused:
		return "go on with: devopsController upgrade resume"
	}
	return ""
}

func upgradeStatusCommand(f *flags) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "status [ROLLOUT]", Short: "Show how far rollouts are, or the agents of one", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			list, err := c.rollouts(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return f.showAgents(cmd.Context(), c, list, args[0])
			}
			if !all {
				list = slices.DeleteFunc(list, func(r controller.RolloutInfo) bool { return r.ReplacedBy != 0 })
			}
			if f.json {
				return f.printJSON(list)
			}
			if len(list) == 0 {
				_, err := fmt.Fprintln(f.err, "no rollout yet: devopsController upgrade offer VERSION")
				return err
			}
			for _, r := range list {
				if err := f.printRollout(r); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also those that newer ones have replaced")
	return cmd
}

func (f *flags) showAgents(ctx context.Context, c *api, list []controller.RolloutInfo, name string) error {
	found, err := pick(list, name, always)
	if err != nil {
		return err
	}
	var r controller.RolloutInfo
	if err := c.call(ctx, "GET", "/rollouts/"+strconv.FormatInt(found.ID, 10), nil, &r); err != nil {
		return err
	}
	if f.json {
		return f.printJSON(r)
	}
	if err := f.printRollout(r); err != nil || len(r.Agents) == 0 {
		return err
	}
	w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "AGENT\tHOST\tSTATE\tREPORTS\tHAD\tOFFERED\tREASON")
	for _, m := range r.Agents {
		state := string(m.State)
		if m.Canary {
			state += " (canary)"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Agent, plainLine(m.HostName), state, plainLine(m.Version), plainLine(m.From), when(m.OfferedAt), plainLine(m.Reason))
	}
	return w.Flush()
}

func (c *api) rollouts(ctx context.Context) (list []controller.RolloutInfo, err error) {
	err = c.call(ctx, "GET", "/rollouts", nil, &list)
	return list, err
}

func always(controller.RolloutInfo) bool { return true }

// inForce reports whether anything can be done with a rollout still.
func inForce(r controller.RolloutInfo) bool {
	return r.ReplacedBy == 0 && r.State != controller.RolledBack
}

// pick finds a rollout by its number or version, the newest of that version. Without a name it is the only one that is
// on its way and fits, or else the only one that fits.
func pick(list []controller.RolloutInfo, name string, fits func(controller.RolloutInfo) bool) (controller.RolloutInfo, error) {
	if name != "" {
		for _, exactly := range []bool{true, false} {
			i := slices.IndexFunc(list, func(r controller.RolloutInfo) bool {
				return strconv.FormatInt(r.ID, 10) == name || r.Version == name && (!exactly || fits(r))
			})
			if i >= 0 {
				return list[i], nil
			}
		}
		return controller.RolloutInfo{}, fmt.Errorf("no rollout %s", name)
	}
	var fitting []controller.RolloutInfo
	for _, finished := range []bool{false, true} {
		for _, r := range list {
			if fits(r) && (r.State == controller.Done) == finished {
				fitting = append(fitting, r)
			}
		}
		if len(fitting) == 1 {
			return fitting[0], nil
		}
		if len(fitting) > 1 {
			break
		}
	}
	if len(fitting) == 0 {
		return controller.RolloutInfo{}, errors.New("no rollout is in a state for this; devopsController upgrade status shows them")
	}
	var texts []string
	for _, r := range fitting {
		texts = append(texts, fmt.Sprintf("%d (%s, %s)", r.ID, r.Version, r.State))
	}
	return controller.RolloutInfo{}, fmt.Errorf("which rollout? there are %s", strings.Join(texts, ", "))
}

// change acts on a rollout and shows it.
func (f *flags) change(ctx context.Context, name, action string, fits func(controller.RolloutInfo) bool, body any) error {
	c, err := f.open()
	if err != nil {
		return err
	}
	list, err := c.rollouts(ctx)
	if err != nil {
		return err
	}
	found, err := pick(list, name, fits)
	if err != nil {
		return err
	}
	var r controller.RolloutInfo
	if err := c.call(ctx, "POST", fmt.Sprintf("/rollouts/%d/%s", found.ID, action), body, &r); err != nil {
		return err
	}
	return f.showRollout(r)
}

// argument is the only one, or "".
func argument(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func upgradePauseCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "pause [ROLLOUT]", Short: "Offer a release to nobody new; who was told finishes", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.change(cmd.Context(), argument(args), "pause", func(r controller.RolloutInfo) bool {
				return inForce(r) && r.State != controller.Paused && r.State != controller.Halted
			}, nil)
		},
	}
}

func upgradeResumeCommand(f *flags) *cobra.Command {
	var retry bool
	cmd := &cobra.Command{
		Use: "resume [ROLLOUT]", Short: "Go on with a rollout that is paused, halted, or waits for its canaries", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.change(cmd.Context(), argument(args), "resume", func(r controller.RolloutInfo) bool {
				return inForce(r) && (retry && r.Counts[controller.Faulty] > 0 || r.State == controller.Paused || r.State == controller.Halted || r.State == controller.InCanary)
			}, map[string]bool{"retry": retry})
		},
	}
	cmd.Flags().BoolVar(&retry, "retry", false, "offer it to those that failed again")
	return cmd
}

func upgradeRollbackCommand(f *flags) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "rollback [VERSION]", Short: "Take agents back from a release to what they had before, or to VERSION", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			to := argument(args)
			c, err := f.open()
			if err != nil {
				return err
			}
			list, err := c.rollouts(cmd.Context())
			if err != nil {
				return err
			}
			r, err := pick(list, name, inForce)
			if i := slices.IndexFunc(list, func(r controller.RolloutInfo) bool { return inForce(r) && r.Version == to }); err != nil && name == "" && i >= 0 {
				r, err = list[i], nil // the version to get rid of says which rollout
			}
			if err != nil {
				return err
			}
			if to == r.Version {
				to = ""
			}
			return f.change(cmd.Context(), strconv.FormatInt(r.ID, 10), "rollback", always, map[string]string{"version": to})
		},
	}
	cmd.Flags().StringVar(&name, "rollout", "", "`number` or version of the rollout, when there is more than one")
	return cmd
}
