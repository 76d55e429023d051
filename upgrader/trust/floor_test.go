package trust

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/devops-agent/devops-agent/upgrader/version"
)

func version2(name, version string) Claim { return Claim{Name: name, Version: version} }

func TestFloor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "floor.json")
	f, err := OpenFloor(path)
	if err != nil {
		t.Fatal(err)
	}
	allows := func(f *Floor, name, version string, want bool) {
		t.Helper()
		err := f.Allows(version2(name, version))
		if want && err != nil || !want && !errors.Is(err, ErrOlder) {
			t.Errorf("%s %s: %v", name, version, err)
		}
		if !want && (!strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), version)) {
			t.Errorf("%v", err)
		}
	}
	raise := func(name, version string) {
		t.Helper()
		if err := f.Raise(version2(name, version)); err != nil {
			t.Error(err)
		}
	}
	allows(f, "devopsAgent", "v0.0.1", true)
	raise("devopsAgent", "v1.2.3")
	raise("devopsAgent", "v1.2.3") // nothing changes
	raise("devopsAgent", "v1.0.0")
	raise("worker-agent.jar", "v3.0.0")
	reopened, err := OpenFloor(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*Floor{f, reopened} {
		allows(f, "devopsAgent", "v1.2.2", false)
		allows(f, "devopsAgent", "v1.2.3-rc.1", false)
		allows(f, "devopsAgent", "v1.2.3", true)
		allows(f, "devopsAgent", "v1.2.3-5-g1a2b3c", true)
		allows(f, "devopsAgent", "v1.10.0", true)
		allows(f, "devopsAgent", "latest", false)
		allows(f, "worker-agent.jar", "v2.9.9", false)
		allows(f, "jdk17.zip", "17.0.1", true)
		if err := f.Allows(Claim{}); err != nil {
			t.Errorf("a file without signature: %v", err)
		}
	}
	for _, bad := range []Claim{{}, version2("", "v1.2.3"), version2("devopsAgent", ""), version2("devopsAgent", "latest"), version2("../x", "v1.2.3")} {
		if err := f.Raise(bad); err == nil {
			t.Errorf("%+v was raised", bad)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// What another process raised counts.
	if err := reopened.Raise(version2("devopsAgent", "v2.0.0")); err != nil {
		t.Fatal(err)
	}
	allows(f, "devopsAgent", "v1.10.0", false)
	raise("devopsDaemon", "v1.0.0")
	versions, err := f.Versions()
	if err != nil || len(versions) != 3 || versions["devopsAgent"] != "v2.0.0" {
		t.Errorf("%v, %v", versions, err)
	}
}

func TestADamagedFloorIsNotAnEmptyOne(t *testing.T) {
	good := filepath.Join(t.TempDir(), "floor.json")
	f, err := OpenFloor(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Raise(version2("devopsAgent", "v1.2.3")), f.Raise(version2("upgrader", "v1.2.3"))); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	damaged := map[string]string{
		"zeros":        string(make([]byte, len(data))),
		"another file": "devops.agent.id=1\n", "a list": "[]", "null": "null", "an empty object": "{}", "no object": `{"floor":null}`,
		"another key": `{"floor":{},"x":1}`, "no version": `{"floor":{"devopsAgent":"latest"}}`, "no text": `{"floor":{"devopsAgent":1}}`,
		"a path": `{"floor":{"../x":"v1.2.3"}}`, "more behind": string(data) + "{}", "endless": string(data) + strings.Repeat(" ", maxFloor),
	}
	for n := range len(data) - 2 { // the last two are its brace and line end
		damaged["cut off after "+string(data[:n])] = string(data[:n])
	}
	for what, text := range damaged {
		path := filepath.Join(t.TempDir(), "floor.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		opened, err := OpenFloor(path)
		var wrong *FloorError
		if opened != nil || !errors.As(err, &wrong) || wrong.Path != path || wrong.Hint() == "" || errors.Unwrap(wrong) == nil {
			t.Errorf("%s: %v", what, err)
		}
		// The same when it breaks while it is open: nothing is allowed, nothing is written over it.
		f := &Floor{path: path}
		if err := f.Allows(version2("devopsAgent", "v9.9.9")); !errors.As(err, &wrong) {
			t.Errorf("%s: %v", what, err)
		}
		if err := f.Raise(version2("devopsAgent", "v9.9.9")); !errors.As(err, &wrong) {
			t.Errorf("%s: %v", what, err)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != text {
			t.Errorf("%s: it was written over", what)
		}
	}
	if _, err := OpenFloor(filepath.Dir(good)); err == nil {
		t.Error("a directory was read as a floor")
	}
}

func TestTheFloorIsRaisedByMany(t *testing.T) {
	f, err := OpenFloor(filepath.Join(t.TempDir(), "floor.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	names := []string{"devopsAgent", "devopsDaemon", "upgrader", "worker-agent.jar"}
	for _, name := range names {
		for _, version := range []string{"v1.2.3", "v1.3.0", "v1.2.9"} {
			all.Go(func() {
				if err := f.Raise(version2(name, version)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	versions, err := f.Versions()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if versions[name] != "v1.3.0" {
			t.Errorf("%s is at %q", name, versions[name])
		}
	}
}

func FuzzFloor(f *testing.F) {
	f.Add([]byte(`{"floor":{"devopsAgent":"v1.2.3"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		versions, err := parseFloor(data)
		if err != nil {
			return
		}
		for name, least := range versions {
			if !version.Valid(least) || !version.Plain(name) {
				t.Errorf("%q: %q %q", data, name, least)
			}
		}
	})
}
