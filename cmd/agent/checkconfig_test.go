package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCheckConfig(t *testing.T) {
	home := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad := write("good.toml", "[upgrade]\nmode = \"off\"\n"), write("bad.toml", "\n[upgrade]\nmod = \"off\"\n")
	own := write("agent.toml", "")
	for _, c := range []struct {
		args []string
		want result
	}{
		{[]string{good}, result{0, good + ": good\n", ""}},
		{[]string{"--home", home}, result{0, own + ": good\n", ""}},
		{[]string{bad}, result{code: 1}},
		{[]string{filepath.Join(home, "none.toml")}, result{code: 1}},
	} {
		got := call(t, "", nil, append([]string{"check-config"}, c.args...)...)
		if c.want.code != 0 {
			got.stdout, got.stderr = "", ""
		}
		if got != c.want {
			t.Errorf("%q: %+v, want %+v", c.args, got, c.want)
		}
	}
	enrol := write("enroll.d/a.toml", "gateway = \"http://x\"\n")
	if got := call(t, "", nil, "check-config", "--home", home); got.code != 1 || got.stdout != "" {
		t.Errorf("%s without a token: %+v", enrol, got)
	}
}
