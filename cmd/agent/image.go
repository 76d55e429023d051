package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/agent/config"
	"github.com/devops-agent/devops-agent/service"
)

func prepareCommand(where *place) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "prepare-image", Short: "Make this machine a template: forget identity, logs and builds", Args: usage(cobra.NoArgs),
		Long: "prepare-image empties the home of what belongs to this one machine, before an image is taken of it: identity, logs,\n" +
			"runtime files, build files and the contents of the workspace. Programs, JDKs, agent.toml, certificates and the registration stay: a\n" +
			"machine made from the image enrols when it starts, by [enroll] in agent.toml, or with \"enroll\". The agent must be stopped.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, inst, err := where.open()
			if err != nil {
				return err
			}
			if err := l.mayChange(cmd, nil); err != nil {
				return err
			}
			if !lived(inst.Home) { // the files of others stay
				say(cmd, "nothing to do: no agent has lived in %s", inst.Home)
				return nil
			}
			lock, err := quiescent(cmd.Context(), l, inst, "prepare-image")
			if err != nil {
				return err
			}
			released := false
			release := func() error {
				if released {
					return nil
				}
				released = true
				return lock.Release()
			}
			defer func() { _ = release() }()
			if !yes {
				if err := confirm(cmd, fmt.Sprintf("forget the identity in %s, and remove its logs, build files and the contents of its workspace", inst.Home)); err != nil {
					return err
				}
			}
			// The identity first: whatever stops us, two machines with one identity must not come of it.
			if err := remove(inst, []string{config.PropertiesFile}); err != nil {
				return err
			}
			if err := remove(inst, []string{config.BackupFile, ".enrolment", ".agent-package-*", ".debug", ".removed", "logs", "build_tmp", "docker_build_tmp",
				"telegraf.conf", "hs_err_pid*", "devops_agent_start_*", "devops_agent_prepare_start_*", "devops_pipeline_*"}); err != nil {
				return err
			}
			for _, dir := range []string{"workspace", "docker_workspace"} {
				if err := empty(inst, dir); err != nil {
					return err
				}
			}
			if err := release(); err != nil { // on Windows an open file cannot be removed
				return err
			}
			if err := remove(inst, []string{"runtime"}); err != nil {
				return err
			}
			say(cmd, "prepared: %s has no identity any more; the next start enrols, or needs \"enroll\"", inst.Home)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// empty removes what is in a directory of the home. A link to somewhere else is left alone, with what it leads to.
func empty(inst *service.Installation, name string) error {
	root, err := os.OpenRoot(inst.Home)
	if err != nil {
		return fmt.Errorf("empty %s: %w", name, err)
	}
	defer func() { _ = root.Close() }()
	if info, err := root.Lstat(name); err != nil || !info.IsDir() {
		return nil
	}
	entries, err := os.ReadDir(inst.Path(name))
	if err != nil {
		return fmt.Errorf("empty %s: %w", name, err)
	}
	for _, entry := range entries {
		if err := root.RemoveAll(name + "/" + entry.Name()); err != nil {
			return fmt.Errorf("empty %s: %w", name, err)
		}
	}
	return nil
}
