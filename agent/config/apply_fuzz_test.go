package config

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// FuzzApply: whatever a server sends, the next start reads back what was in force, and the identity is not touched.
func FuzzApply(f *testing.F) {
	f.Add(`{"parallelTaskCount":-1,"gateway":"https://x\nlandun.env=EVIL","language":"fr_FR","envs":{"HTTP_PROXY":"http://a:b@c"}}`)
	f.Fuzz(func(t *testing.T, body string) {
		reply, _ := wire.DecodeHeartbeat(json.RawMessage(body))
		if reply == nil {
			return
		}
		dir := t.TempDir()
		write(t, filepath.Join(dir, PropertiesFile), seedFile)
		s := open(t, dir, nil)
		before := s.Settings()
		changes, err := s.Apply(reply)
		if pending := s.PendingGateway(); pending != "" {
			more, serr := s.SetGateway(pending)
			if serr != nil {
				t.Errorf("a pending gateway is refused: %v", serr)
			}
			changes = append(changes, more...)
		}
		for _, c := range changes {
			if c.From == c.To && c.Key != KeyHTTPProxy && c.Key != KeyHTTPSProxy && len(c.To) < 80 {
				t.Errorf("no change: %+v", c)
			}
		}
		if err != nil && strings.ContainsAny(err.Error(), "\r\x00") {
			t.Errorf("error: %q", err)
		}
		now := s.Settings()
		if now.Identity != before.Identity || now.Env != before.Env || now.SlaveUser != before.SlaveUser || now.JDKDir != before.JDKDir {
			t.Errorf("not the server's to change: %+v", now)
		}
		if again := open(t, dir, nil).Settings(); !reflect.DeepEqual(again, now) {
			t.Errorf("in force  %+v\nread back %+v", now, again)
		}
		if !strings.HasPrefix(file(t, dir, PropertiesFile), "# package of 2023\ndevops.project.id=demo\n") {
			t.Errorf("%s", file(t, dir, PropertiesFile))
		}
	})
}
