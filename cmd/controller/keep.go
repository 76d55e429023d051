package main

import (
	"time"

	"github.com/spf13/pflag"

	"github.com/devops-agent/devops-agent/controller"
)

// retentionFlags are serve's flags that say what is kept.
type retentionFlags struct {
	builds, logs days
	bytes        amount
}

func (k *retentionFlags) add(fl *pflag.FlagSet) {
	fl.Var(&k.builds, "keep-builds", "how long builds are kept after their end; 0 is for ever")
	fl.Var(&k.logs, "keep-logs", "how long their logs are kept; 0 is as long as the builds")
	fl.Var(&k.bytes, "keep-bytes", "how much the data base may hold: the oldest logs, then builds, go first; 0 is no limit")
}

func (k *retentionFlags) set(o *controller.Options) {
	o.KeepBuilds, o.KeepLogs, o.KeepBytes = time.Duration(k.builds), time.Duration(k.logs), int64(k.bytes)
}
