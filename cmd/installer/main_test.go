package main

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestAgentIsFound: by -home in each of its forms, in the current directory; and what is missing is named.
func TestAgentIsFound(t *testing.T) {
	name := "devopsAgent"
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	one, two, none := filepath.Join(root, "one"), filepath.Join(root, "two words"), filepath.Join(root, "none")
	for _, dir := range []string{one, two, none} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if dir == none {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(one)
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, one},
		{[]string{"-action=install"}, one},
		{[]string{"-home", two}, two},
		{[]string{"--home=" + two, "-action", "uninstall"}, two},
		{[]string{"-action=install", "-home=" + two, "--", "user", "--home", none}, two},
		{[]string{"-home=../two words"}, two},
		{[]string{"home", two}, one},
		{[]string{"-home", none}, ""},
	} {
		got, err := find(tc.args)
		if tc.want == "" {
			if err == nil || err.Error() != "no agent: "+filepath.Join(none, name)+" is not there" {
				t.Errorf("%q: %s, %v", tc.args, got, err)
			}
			continue
		}
		if err != nil || got != filepath.Join(tc.want, name) {
			t.Errorf("%q: %s, %v", tc.args, got, err)
		}
	}
}
