package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// signed is a body with a digest that fits: a fuzzer would not find one.
func signed(body string) []byte {
	return []byte("devops-agent upgrade 1 " + sum(body) + "\n" + body + "\n")
}

func aRecord() *Record {
	id := "1718000000-0a1b"
	return &Record{ID: id, Kind: FromServer, At: time.Unix(1718000000, 0).UTC(), Proof: 30, Moves: []Move{
		{Part: JDK, Live: "jdk", Fresh: "jdk_1718000000", Kept: "jdk_1600000000", Tree: true},
		{Part: Agent, Live: "devopsAgent", Fresh: newPath(id, "devopsAgent"), Kept: oldPath(id, "devopsAgent"), Old: sum("1"), New: sum("2"), From: "v1", To: "v2"},
	}}
}

func TestRecordIsReadAsItWasWritten(t *testing.T) {
	text, err := encode(aRecord())
	if err != nil {
		t.Fatal(err)
	}
	r, err := decode(text, "linux")
	if err != nil {
		t.Fatal(err)
	}
	again, err := encode(r)
	if err != nil || !bytes.Equal(text, again) {
		t.Errorf("%s and %s, %v", text, again, err)
	}
	if _, err := decode(text, "windows"); !errors.Is(err, errDamaged) {
		t.Errorf("names of another system: %v", err)
	}
	for n := range text {
		spoiled := bytes.Clone(text)
		spoiled[n] ^= 1
		if _, err := decode(spoiled, "linux"); !errors.Is(err, errDamaged) {
			t.Fatalf("byte %d: %v", n, err)
		}
		if _, err := decode(text[:n], "linux"); n < len(text)-1 && !errors.Is(err, errDamaged) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func TestRecordThatNamesOtherPathsIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(r *Record){
		"a secret is live":      func(r *Record) { r.Moves[1].Live = ".agent.properties" },
		"above home":            func(r *Record) { r.Moves[1].Live = "../devopsAgent" },
		"absolute":              func(r *Record) { r.Moves[1].Fresh = "/etc/shadow" },
		"of another upgrade":    func(r *Record) { r.Moves[1].Fresh = newPath("1718000001-0a1b", "devopsAgent") },
		"kept elsewhere":        func(r *Record) { r.Moves[1].Kept = "devopsDaemon" },
		"not kept":              func(r *Record) { r.Moves[1].Kept = "" },
		"a tree of a file":      func(r *Record) { r.Moves[1].Tree = true },
		"a file of a tree":      func(r *Record) { r.Moves[0].Tree = false },
		"a workspace":           func(r *Record) { r.Moves[0].Live = "workspace" },
		"below a JDK":           func(r *Record) { r.Moves[0].Live = "jdk/bin" },
		"above a JDK":           func(r *Record) { r.Moves[0].Live = "jdk/../.." },
		"a JDK twice":           func(r *Record) { r.Moves[0].Fresh = "jdk" },
		"kept over the new one": func(r *Record) { r.Moves[0].Kept = r.Moves[0].Fresh },
		"the same in capitals":  func(r *Record) { r.Moves[0].Fresh = "jdk_A"; r.Moves[0].Kept = "jdk_a" },
		"with a dot at its end": func(r *Record) { r.Moves[0].Fresh = "jdk." },
		"an unknown part":       func(r *Record) { r.Moves[1].Part = "kernel" },
		"a part twice":          func(r *Record) { r.Moves = append(r.Moves, r.Moves[1]) },
		"no digest":             func(r *Record) { r.Moves[1].New = "" },
		"no good digest":        func(r *Record) { r.Moves[1].New = strings.Repeat("g", 64) },
		"a name that is a path": func(r *Record) { r.ID = "../../etc" },
		"no moves":              func(r *Record) { r.Moves = nil },
		"a negative time":       func(r *Record) { r.Proof = -1 },
	} {
		r := aRecord()
		spoil(r)
		text, err := encode(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(text, "linux"); !errors.Is(err, errDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	text, err := encode(aRecord())
	if err != nil {
		f.Fatal(err)
	}
	_, body, _ := strings.Cut(strings.TrimSuffix(string(text), "\n"), "\n")
	f.Add(body, "linux")
	f.Add(strings.ReplaceAll(body, "devopsAgent", "devopsAgent.exe"), "windows")
	f.Add(`{"id":"1-0000","moves":[{"part":"jdk","live":"jdk","fresh":"jdk_1","tree":true}]}`, "darwin")
	f.Fuzz(func(t *testing.T, body, goos string) {
		_, _ = decode([]byte(body), goos) // without a digest
		r, err := decode(signed(body), goos)
		if err != nil {
			return
		}
		if !goodID.MatchString(r.ID) || len(r.Moves) == 0 {
			t.Errorf("%+v", r)
		}
		for _, m := range r.Moves {
			for _, name := range []string{m.Live, m.Fresh, m.Kept} {
				if name == "" {
					continue
				}
				if !filepath.IsLocal(filepath.FromSlash(name)) || strings.Contains(name, "..") && !m.Tree || strings.ContainsAny(name, `\:`) {
					t.Errorf("path %q", name)
				}
				if m.Tree && strings.Contains(name, "/") || !m.Tree && strings.HasPrefix(name, ".") {
					t.Errorf("path %q", name)
				}
			}
		}
	})
}

func FuzzStateOf(f *testing.F) {
	for _, name := range []string{"open-ready", "open-trial-0", "open-trial-17", "open-trial-+1", "open-trial-01", "open-undo", "open-cancel", "open-settle", "open-", "x"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		s, starts, ok := stateOf(name)
		if ok && (s.name(starts) != name || s.rank() == 0) || !ok && s != None {
			t.Errorf("%q is %q, %d, %v", name, s, starts, ok)
		}
	})
}

// FuzzHistory reads what somebody may have put into a home, and acts on it.
func FuzzHistory(f *testing.F) {
	id := "1718000000-0a1b"
	a := Attempt{ID: id, Kind: FromServer, State: Settled, Parts: []Change{{Part: Agent, Old: sum("1"), New: sum("2"), Backup: oldPath(id, "devopsAgent")}}, Leftover: []string{"jdk_1600000000"}}
	text, err := json.Marshal(a)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, []byte(`{"size":1,"sha256":"00","decided":["00"]}`))
	f.Add([]byte(`{"id":"1718000000-0a1b","state":"settled","leftover":["../x","workspace","jdk/../workspace"]}`), []byte(`{}`))
	f.Add([]byte(`{"id":"1718000000-0a1b","state":"begun","parts":[{"part":"agent","backup":"upgrade/../.agent.properties"}]}`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, attempt, shelf []byte) {
		d := scenarios()[0].disk()
		precious := modelHome + "/.agent.properties"
		d.Seed(precious, "secret", 0o600)
		d.Seed(modelHome+"/workspace/x", "work", 0o600)
		d.Seed(modelHome+"/jdk/bin/java", "java", 0o700)
		d.Seed(modelHome+"/upgrade/"+id+"/attempt.json", string(attempt), 0o600)
		d.Seed(modelHome+"/upgrade/vendor.json", string(shelf), 0o600)
		before := len(d.Tree())
		j := onModel(d)
		_, _ = j.History()
		_, _ = j.Bad(Agent, sum("2"))
		_, _ = j.Previous("")
		j.Told(id)
		j.readShelf()
		j.Sweep()
		for _, path := range []string{precious, modelHome + "/workspace/x", modelHome + "/devopsAgent", modelHome + "/tmp/devopsAgent"} {
			if _, err := d.ReadFile(filepath.FromSlash(path)); errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is gone, after %q", path, attempt)
			}
		}
		if len(d.Tree()) > before+2 {
			t.Errorf("%d things, and %d before", len(d.Tree()), before)
		}
	})
}
