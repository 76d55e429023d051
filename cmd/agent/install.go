package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/upgrader/swap"
)

// installing is the verb install with what it was told.
type installing struct {
	where   *place
	mode    string
	user    string
	noStart bool
	reboot  bool
	linger  bool
	enrol   enrolment
}

func installCommand(where *place) *cobra.Command {
	in := installing{where: where}
	cmd := &cobra.Command{
		Use: "install [service|user|direct|session]", Short: "Register the agent so that it is always there, and start it",
		Args: usage(cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs)), ValidArgs: modes(),
		Long: "install registers the agent with what keeps it running, and starts it. Without a word it takes the best there is:\n\n" +
			"  service  the system's service manager: systemd, launchd, the Windows service manager; needs root\n" +
			"  user     systemd or launchd of this user; no root needed\n" +
			"  direct   devopsDaemon, where there is neither; no root needed\n" +
			"  session  Windows: in the session of the user who is logged on, for builds with a desktop\n\n" +
			"A machine without identity is enrolled first, when --gateway and a token are given. Doing it again changes nothing.",
		Example: "  sudo devopsAgent install --gateway https://ci.example.com --token-file token\n  devopsAgent install user --linger",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				in.mode = args[0]
			}
			return in.run(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&in.user, "user", "", "account that the agent runs as (default: the owner of the home)")
	flags.BoolVar(&in.noStart, "no-start", false, "register only")
	flags.BoolVar(&in.reboot, "reboot", false, "direct: start with the machine, by an @reboot line in the crontab of this user")
	flags.BoolVar(&in.linger, "linger", true, "user: go on when the user logs out, where the system allows it")
	in.enrol.flags(flags)
	return cmd
}

// modes are the words of install; the second half are the original's (protocol §5.7).
func modes() []string {
	return []string{"service", "user", "direct", "session", "daemon", "login", "background", "task"}
}

func (in installing) run(cmd *cobra.Command, args []string) error {
	l, err := in.where.locate()
	if err != nil {
		return err
	}
	if err := l.mayChange(cmd, args); err != nil {
		return err
	}
	made := false
	if _, err := os.Stat(l.home); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(l.home, 0o700); err != nil {
			return fmt.Errorf("make home: %w", err)
		}
		made = true
	}
	inst, err := service.Open(l.home)
	if err != nil {
		return err
	}
	keeper, err := in.choose(inst)
	if err == nil {
		err = l.mayCommand(cmd, args, keeper.Keeper(), keeper.Name())
	}
	if err == nil {
		err = in.identity(cmd, l, inst)
	}
	if err != nil {
		if made {
			_ = os.Remove(l.home) // only when it is empty still
		}
		return err
	}
	// The unit of a portable installation bears the agent's id: choose again, now that there is one.
	if keeper, err = in.choose(inst); err != nil {
		return err
	}
	a := &agentOf{located: l, inst: inst, keeper: keeper}
	return in.register(cmd, a, keeper)
}

// choose finds the keeper that was asked for.
func (in installing) choose(inst *service.Installation) (service.Supervisor, error) {
	wrong := func(do string) error {
		return &adviceError{"install " + in.mode + ": not on this system", do}
	}
	switch mode := in.mode; runtime.GOOS {
	case "windows":
		switch mode {
		case "":
			return service.Best(inst)
		case "service", "session":
			return service.NewKeeper(inst, service.KeeperSCM)
		}
		return nil, wrong("here it is: install service, or install session for builds with a desktop")
	case "darwin":
		switch mode {
		case "":
			return service.Best(inst)
		case "service", "daemon":
			return service.NewKeeper(inst, service.KeeperLaunchd)
		case "user", "login", "background":
			return service.NewKeeper(inst, service.KeeperLaunchAgent)
		case "direct":
			return service.NewKeeper(inst, service.KeeperDaemon)
		}
	default:
		switch mode {
		case "":
			return service.Best(inst)
		case "service", "daemon":
			return service.NewKeeper(inst, service.KeeperSystemd)
		case "user":
			return service.NewKeeper(inst, service.KeeperSystemdUser)
		case "direct":
			return service.NewKeeper(inst, service.KeeperDaemon)
		}
	}
	return nil, wrong("here it is: install service, install user or install direct")
}

// identity enrols, where there is no identity and a way to get one.
func (in installing) identity(cmd *cobra.Command, l located, inst *service.Installation) error {
	cfg, err := config.LoadConfig(inst.Config)
	if err != nil {
		return err
	}
	_, err = config.Peek(inst.Home, cfg)
	switch {
	case err == nil:
		return nil
	case !isMissing(err):
		return err
	case in.enrol.gateway != "" || in.enrol.tokenFile != "":
		id, _, err := in.enrol.run(cmd, inst)
		if err == nil {
			say(cmd, "enrolled as %s", id)
		}
		return err
	case cfg.Enroll.Gateway != "" && cfg.Enroll.TokenFile != "", in.noStart:
		return nil // the agent enrols when it starts, or somebody does before
	}
	return &adviceError{"install: " + inst.Home + " has no identity, so that an agent could not start",
		"enrol with it: " + l.command("install --gateway URL --token-file FILE")}
}

// register puts the programs into place, tells the keeper and starts the agent.
func (in installing) register(cmd *cobra.Command, a *agentOf, keeper service.Supervisor) error {
	ctx := cmd.Context()
	setup, err := in.setup(a.inst)
	if err != nil {
		return err
	}
	if setup.Vendor == "" {
		if err := placePrograms(a.inst, keeper.Keeper()); err != nil {
			return err
		}
	}
	if err := capturePath(a.inst, setup); err != nil {
		return err
	}
	if err := giveToOwner(a.inst, in.user); err != nil {
		return fmt.Errorf("give the home to the agent's account: %w", err)
	}
	// One home, one keeper: another one from before would start a second agent.
	if before, err := service.Of(a.inst); err == nil && before != nil && before.Keeper() != service.KeeperNone &&
		(before.Keeper() != keeper.Keeper() || before.Name() != keeper.Name()) {
		if err := a.mayAsk("take it from its keeper first", "uninstall", before.Keeper(), before.Name()); err != nil {
			return err
		}
		if err := before.Uninstall(ctx); err != nil {
			return fmt.Errorf("take the agent from %s: %w", keeperName(before.Keeper(), before.Name()), err)
		}
		say(cmd, "taken from %s", keeperName(before.Keeper(), before.Name()))
	}
	var logout *service.LingerError // installed, but it ends with the session
	if err := keeper.Install(ctx, setup); err != nil && !errors.As(err, &logout) {
		return err
	}
	say(cmd, "installed: %s", keeperName(keeper.Keeper(), keeper.Name()))
	if logout != nil {
		warn(cmd, "note: %v; %s", logout, logout.Hint())
	}
	if notes, ok := keeper.(interface{ Notes() []string }); ok {
		for _, note := range notes.Notes() {
			warn(cmd, "note: %s", note)
		}
	}
	if keeper.Keeper() == service.KeeperDaemon && !in.reboot {
		warn(cmd, "note: devopsDaemon does not start with the machine; --reboot adds an @reboot line to the crontab of this user")
	}
	if in.noStart {
		return nil
	}
	a.keeper = keeper
	return a.start(cmd)
}

// setup is what the keeper is told.
func (in installing) setup(inst *service.Installation) (service.Setup, error) {
	cfg, err := config.LoadConfig(inst.Config)
	if err != nil {
		return service.Setup{}, err
	}
	s := service.Setup{Home: inst.Home, Config: inst.Config, User: in.user, Drain: cfg.Drain.Timeout,
		Session: in.mode == "session", Linger: in.linger, Reboot: in.reboot}
	vendor := service.Packaged(runtime.GOOS).Vendor
	if own, err := ownDirectory(); err == nil && same(own, vendor) {
		s.Vendor = vendor
	}
	return s, nil
}

// ownDirectory is where this program really lies.
func ownDirectory() (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	if own, err = filepath.EvalSymlinks(own); err != nil {
		return "", err
	}
	return filepath.Dir(own), nil
}

// placePrograms brings the programs that lie beside this one into a home that lacks them, under the names that keepers
// and workers know (protocol §2.1); what is there stays. devopsDaemon starts the agent itself, the others by upgrader. tmp/upgrader is what an original agent calls.
func placePrograms(inst *service.Installation, keeper service.Keeper) error {
	own, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find my own file: %w", err)
	}
	if own, err = filepath.EvalSymlinks(own); err != nil {
		return fmt.Errorf("find my own file: %w", err)
	}
	exe := ""
	if runtime.GOOS == "windows" {
		exe = ".exe"
	}
	// Built programs are called devopsAgent_linux_arm64 and the like.
	suffix, _ := strings.CutPrefix(strings.TrimSuffix(filepath.Base(own), exe), "devopsAgent")
	dir := filepath.Dir(own)
	for _, p := range []struct {
		name, to string
		needed   bool
	}{
		{"devopsAgent", "devopsAgent", true}, {"devopsDaemon", "devopsDaemon", true}, {"upgrader", "upgrader", keeper != service.KeeperDaemon},
		{"devopsWorker", "devopsWorker", false}, {"upgrader", filepath.Join("tmp", "upgrader"), false},
	} {
		to := inst.Path(p.to + exe)
		if info, err := os.Stat(to); err == nil && isProgram(info) {
			continue
		}
		from := ""
		for _, name := range []string{p.name + exe, p.name + suffix + exe} {
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil && isProgram(info) {
				from = filepath.Join(dir, name)
				break
			}
		}
		if p.name == "devopsAgent" {
			from = own
		}
		if from == "" {
			if p.needed {
				return &adviceError{fmt.Sprintf("install: %s is neither in %s nor in %s", p.name, inst.Home, dir), "unpack all programs of the archive into one directory, and call install there"}
			}
			continue
		}
		if err := copyProgram(from, to); err != nil {
			return fmt.Errorf("put %s into place: %w", p.name, err)
		}
	}
	for _, dir := range []string{"workspace", "logs"} {
		if err := os.MkdirAll(inst.Path(dir), 0o700); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	return nil
}

// copyProgram copies a program so that nobody ever sees half of it.
func copyProgram(from, to string) error {
	program, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	return swap.WriteFile(to, program, 0o755) // workers and scripts of other accounts call it
}

// capturePath writes down the PATH that builds have here, as the original does at install (protocol §2.1, .path): a
// service starts with hardly any. What is there stays; a package's agent gets none, its PATH is the unit's.
func capturePath(inst *service.Installation, s service.Setup) error {
	path := os.Getenv("PATH")
	if runtime.GOOS == "windows" || s.Vendor != "" || path == "" || strings.ContainsAny(path, "\r\n") {
		return nil
	}
	file, err := os.OpenFile(inst.Path(".path"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write down PATH: %w", err)
	}
	_, err = file.WriteString(path + "\n")
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write down PATH: %w", errors.Join(err, os.Remove(file.Name())))
	}
	return nil
}

func uninstallCommand(where *place) *cobra.Command {
	var purge, yes, now bool
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Stop the agent and take it from its keeper; identity and workspace stay", Args: usage(cobra.NoArgs),
		Long: "uninstall stops the agent, when its builds have ended, and takes back what install registered. The home stays as it is,\n" +
			"with identity, programs and workspace. With --purge all that the agent made in its home is removed as well: identity,\n" +
			"programs, logs, build files and the workspace in the home. agent.toml and what is outside stay.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := where.agent(cmd)
			if errors.Is(err, os.ErrNotExist) {
				say(cmd, "not installed")
				return nil
			}
			if err != nil {
				return err
			}
			if !lived(a.inst.Home) && a.keeper == nil { // purge would remove the files of others
				say(cmd, "not installed: no agent has lived in %s", a.inst.Home)
				return nil
			}
			if a.keeper != nil {
				if err := a.mayCommand(cmd, nil, a.keeper.Keeper(), a.keeper.Name()); err != nil {
					return err
				}
			}
			if purge && !yes {
				if err := confirm(cmd, fmt.Sprintf("remove the agent's identity, logs, build files and workspace in %s for good", a.inst.Home)); err != nil {
					return err
				}
			}
			if err := a.uninstall(cmd, now); err != nil {
				return err
			}
			if !purge {
				say(cmd, "%s stays, with identity and workspace", a.inst.Home)
				return nil
			}
			return a.purge(cmd)
		},
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "remove what the agent made in its home, too")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&now, "now", false, "stop the builds at once; they are reported as failed")
	return cmd
}

func (a *agentOf) uninstall(cmd *cobra.Command, now bool) error {
	held, _ := holderOf(a.inst, nil)
	if a.keeper == nil && !held {
		say(cmd, "not installed")
		return nil
	}
	if held || a.keeper != nil {
		if err := a.stop(cmd.Context(), cmd, now); err != nil {
			return err
		}
	}
	if a.keeper == nil {
		return nil
	}
	if err := a.keeper.Uninstall(cmd.Context()); err != nil {
		return err
	}
	say(cmd, "uninstalled: %s", a.called())
	return nil
}

// belongings are what an agent, its workers and the original's packages make in a home (protocol §2.1). A pattern
// never crosses a directory, so that a link to somewhere else is removed, and not what it leads to.
func belongings() []string {
	return []string{
		config.PropertiesFile, config.BackupFile, ".enrolment", ".agent-package-*", config.CertFile, ".debug", ".install_type", ".keeper", ".removed", ".env", ".path",
		".daemon_upgrade", "runtime", "logs", "tmp", "build_tmp", "docker_build_tmp", "docker_workspace", "workspace", "upgrade", ".jdk.[0-9]*", ".jdk17.[0-9]*", "jdk", "jdk[0-9]*", "jdk_[0-9]*", "jre", "jre.zip", "jdk.zip", "jdk17.zip",
		"agent.zip", "batch.zip", "worker-agent.jar", "telegraf.conf", "agent_docker_init.sh", "hs_err_pid*", "devops_agent_start_*.sh",
		"devops_agent_prepare_start_*.sh", "devops_pipeline_*", "install.sh", "start.sh", "stop.sh", "uninstall.sh", "install.bat", "start.bat", "stop.bat",
		"uninstall.bat", "devopsctl.vbs", "devopsDaemon", "devopsWorker", "upgrader", "installer", "devopsAgent",
		"devopsDaemon.exe*", "devopsWorker.exe", "upgrader.exe", "installer.exe", "devopsAgent.exe*",
	}
}

// purge removes what the agent made.
func (a *agentOf) purge(cmd *cobra.Command) error {
	if err := remove(a.inst, belongings()); err != nil {
		return err
	}
	left, err := os.ReadDir(a.inst.Home)
	if err != nil {
		return err
	}
	if len(left) == 0 && a.inst.Home != service.Packaged(runtime.GOOS).Home {
		if err := os.Remove(a.inst.Home); err == nil {
			say(cmd, "removed: %s", a.inst.Home)
			return nil
		}
	}
	say(cmd, "removed what the agent made in %s; %s not the agent's", a.inst.Home, count(len(left), "entry"))
	return nil
}

// remove removes the entries of home that fit the patterns, and says which would not go.
func remove(inst *service.Installation, patterns []string) error {
	root, err := os.OpenRoot(inst.Home)
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	defer func() { _ = root.Close() }()
	entries, err := os.ReadDir(inst.Home)
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		fits := func(pattern string) bool { ok, err := filepath.Match(pattern, entry.Name()); return ok && err == nil }
		if slices.ContainsFunc(patterns, fits) {
			errs = append(errs, root.RemoveAll(entry.Name()))
		}
	}
	return errors.Join(errs...)
}

// refusedError: a question was not answered with yes.
func refused() error {
	return &adviceError{"nothing was done", "to do it without a question, add --yes"}
}

// confirm asks a person; where there is none, the answer is no.
func confirm(cmd *cobra.Command, what string) error {
	if !isTerminalInput(cmd) {
		return refused()
	}
	_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s? [y/N] ", what)
	answer := make(chan string, 1)
	go func() { // ends with the program when nobody answers
		line, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-cmd.Context().Done():
		return refused()
	case got := <-answer:
		if got == "y" || got == "yes" {
			return nil
		}
		return refused()
	}
}

// quiescent takes the role agent, so that none starts while the home is changed; the error says who has it.
func quiescent(ctx context.Context, l located, inst *service.Installation, verb string) (*service.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	lock, err := inst.Hold(ctx, service.RoleAgent)
	if errors.Is(err, service.ErrRunning) {
		_, who := holderOf(inst, nil)
		return nil, &adviceError{fmt.Sprintf("%s: the agent runs: %s", verb, or2(who, "another process")), "stop it first: " + l.command("stop")}
	}
	return lock, err
}
