package agent

import (
	"fmt"

	"github.com/devops-agent/devops-agent/agent/config"
)

// Reload reads agent.toml and .cert again. What is wrong in them is the error, with its line number; everything then
// stays as it was. What can change takes effect at once; docs/configuration.md says what waits for the next start.
func (a *Agent) Reload() error {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	return a.teller.reload(func() error {
		old := a.config.Load()
		fresh, err := config.LoadConfig(old.Path)
		if err == nil {
			roots, rerr := config.Roots(a.Installation.Home)
			if err = rerr; err == nil {
				a.roots.Store(roots)
			}
		}
		if err != nil {
			err = fmt.Errorf("configuration not read again, the old one stays in force: %w", err)
			a.Log.Error("Configuration not read again, the old one stays in force", "err", err)
			text := err.Error()
			a.unread.Store(&text)
			return err
		}
		a.unread.Store(nil)
		gateway := a.Store.Settings().Gateway
		a.config.Store(fresh)
		a.Store.Reconfigure(fresh)
		if a.SetLevel != nil {
			a.SetLevel(fresh.Log.Level)
		}
		s := a.Store.Settings()
		a.slots.SetLimits(s.Parallel, s.DockerParallel)
		if s.Gateway != gateway {
			a.waits.Store(false)
			a.ip.Store(nil)
		}
		a.newHTTP()
		a.Log.Info("Configuration read again", "path", old.Path)
		for _, o := range a.Store.Overrides() {
			a.Log.Info("Setting of agent.toml in force", "key", o.Key, "setting", o.Setting, "value", o.Effective)
		}
		var later []string
		if fresh.Protocol != old.Protocol {
			later = append(later, "protocol")
		}
		was, is := old.Log, fresh.Log
		was.Level = is.Level
		if was != is {
			later = append(later, "log.keep_days, log.keep_files, log.max_size_mb")
		}
		if len(later) > 0 {
			a.Log.Warn("Settings take effect with the next start of the agent", "settings", later)
		}
		return nil
	})
}
