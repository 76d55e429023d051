package job

import (
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/devops-agent/devops-agent/agent/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func buildOf(id string) wire.Build {
	one := 1
	return wire.Build{Project: "demo", ID: id, VMSeq: "1", Pipeline: "p-1", ExecuteCount: &one, ContainerHashID: "c-1"}
}

func mustExist(t *testing.T, path string, want bool) {
	t.Helper()
	if _, err := os.Lstat(path); (err == nil) != want {
		t.Errorf("%s there: %v, want %v", path, err == nil, want)
	}
}
