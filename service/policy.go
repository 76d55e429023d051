package service

import (
	"io"
	"os"
	"time"

	"github.com/BurntSushi/toml"
)

// What counts where agent.toml says nothing about it.
const (
	upgradeMode   = "server"
	upgradeProof  = 30 * time.Second
	mostProof     = 10 * time.Minute
	mostConfigLen = 1 << 20
)

// UpgradePolicy says what agent.toml has to say before there is an agent: who may replace programs (upgrade.mode), and how
// long a new version must run well before the old one is dropped (upgrade.settle_after). Mistakes in the file are the agent's to tell:
// what is not there, or makes no sense, is what it is by default.
func (i *Installation) UpgradePolicy() (mode string, proof time.Duration) {
	var file struct {
		Upgrade struct {
			Mode        any `toml:"mode"`
			SettleAfter any `toml:"settle_after"`
		} `toml:"upgrade"`
	}
	mode, proof = upgradeMode, upgradeProof
	f, err := os.Open(i.Config)
	if err != nil {
		return mode, proof
	}
	defer func() { _ = f.Close() }()
	if _, err := toml.NewDecoder(io.LimitReader(f, mostConfigLen)).Decode(&file); err != nil {
		return mode, proof
	}
	if text, ok := file.Upgrade.Mode.(string); ok && (text == "package" || text == "off") {
		mode = text
	}
	if text, ok := file.Upgrade.SettleAfter.(string); ok {
		if d, err := time.ParseDuration(text); err == nil && d >= 0 && d <= mostProof {
			proof = d
		}
	}
	return mode, proof
}
