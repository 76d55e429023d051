package controller

import (
	"errors"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// TestManyRecordsAtOnce: as many as asked, each with a secret of its own and usable, and there after a restart; or none.
func TestManyRecordsAtOnce(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ids, err := s.CreateAgents(NewAgent{OS: "macos", Labels: []string{"sim"}}, 300)
	if err != nil {
		t.Fatal(err)
	}
	secrets := make(map[wire.Secret]bool)
	for _, id := range ids {
		secrets[id.Secret] = true
	}
	if len(ids) != 300 || len(secrets) != 300 {
		t.Errorf("%d records, %d secrets", len(ids), len(secrets))
	}
	for _, count := range []int{-1, 0, maxNewAgents + 1} {
		var input *InputError
		if _, err := s.CreateAgents(NewAgent{}, count); !errors.As(err, &input) {
			t.Errorf("%d: %v", count, err)
		}
	}
	if _, err := s.CreateAgents(NewAgent{OS: "plan9"}, 2); err == nil {
		t.Error("an unknown system was taken")
	}
	s.store.fail = func() error { return errors.New("the disk is full") }
	if _, err := s.CreateAgents(NewAgent{}, 2); err == nil {
		t.Error("records that are not on disk were given out")
	}
	s.store.fail = nil
	if n := len(s.Agents()); n != 300 {
		t.Errorf("%d agents", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	client := &wire.Client{Gateway: "http://controller", Identity: ids[299], HTTP: httpOf(s)}
	if status, err := client.Startup(t.Context(), wire.Startup{HostName: "h", HostIP: "1.1.1.1", DetectOS: "macos"}); err != nil || status != wire.UnImportOK {
		t.Errorf("%s, %v", status, err)
	}
	if a, err := s.FindAgent(ids[299].Agent); err != nil || a.OS != "macos" || len(a.Labels) < 2 {
		t.Errorf("%+v, %v", a, err)
	}
}
