package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A room is one folder of the house: its sentence, and which of our own folders its code may import. A trailing slash
// means everything below.
type room struct {
	sentence string
	may      []string
}

// floor is everything that programs may use.
func floor() []string {
	return []string{"agent", "agent/", "worker", "controller", "controller/", "packaging", "packaging/repo", "upgrader", "upgrader/", "service", "service/",
		"systemd", "launchd", "windows"}
}

func rooms() map[string]room {
	program := append(floor(), "cmd/internal/cli", "cmd/internal/batch", "cmd/internal/recovery")
	return map[string]room{
		"systemd":                    {"A unit file for the agent, and the conversation with systemctl.", nil},
		"launchd":                    {"A launchd job for the agent, and the conversation with launchctl.", nil},
		"windows":                    {"The agent as a Windows service: SCM registration and recovery.", nil},
		"service":                    {"The agent as installed on one machine: where its files are, which process holds which lock, who restarts it.", []string{"systemd", "launchd", "windows", "service/control", "service/proc", "upgrader/swap"}},
		"upgrader/journal":           {"The open upgrade of an installation: what is about to be replaced, is on trial, or was taken back.", []string{"service", "service/control", "service/proc", "upgrader/swap"}},
		"upgrader/unpack":            {"Archives of foreign origin (zip, tar.gz), unpacked into one directory and nowhere else.", nil},
		"upgrader/trust":             {"Who may say what runs here: minisign signatures, keys, the oldest version accepted (floor).", []string{"upgrader/swap", "upgrader/version"}},
		"upgrader/version":           {"Versions of programs, and which of two is newer.", nil},
		"upgrader/fetch":             {"One file from a server, whole and checked, or not at all.", []string{"upgrader/swap"}},
		"upgrader/internal/powercut": {"A disk in memory that forgets, in every way a real one may, what was not forced to it.", []string{"upgrader/swap"}},
		"service/control":            {"The local conversation with a running agent or daemon: status, drain, reload, stop.", nil},
		"service/proc":               {"One child and everything it spawned: start, wait, kill.", nil},
		"upgrader/swap":              {"Crash-safe replacement of one file or one directory.", nil},
		"upgrader":                   {"Replacing parts of an installation: take stock, fetch, verify, swap, settle.", []string{"service", "service/control", "service/proc", "upgrader/"}},
		"agent/wire":                 {"What is said to BK-CI: messages, envelope, headers, Client.", nil},
		"agent/config":               {"What the operator wrote (agent.toml) and what BK-CI wrote (.agent.properties): two files, one writer each.", []string{"agent/wire", "upgrader/swap", "upgrader/trust"}},
		"agent/rhythm":               {"When an agent calls next: its intervals, longer and jittered pauses after errors, questions that the server may hold.", []string{"agent/wire"}},
		"agent/job":                  {"What BK-CI asks this machine to run: builds in a worker, pipeline scripts.", []string{"agent/wire", "service", "service/proc", "upgrader/swap"}},
		"agent/metrics":              {"Measurements of this host.", []string{"agent/wire", "service/proc", "upgrader/swap"}},
		"agent/host":                 {"", []string{"agent/wire", "service/proc", "upgrader/swap"}},
		"agent":                      {"One running agent; it owns every loop.", []string{"agent/", "service", "service/control", "service/proc", "upgrader", "upgrader/"}},
		"worker":                     {"A native worker: the session of one build, its script steps, its log.", []string{"agent/wire", "service/proc", "upgrader/unpack"}},
		"controller":                 {"BK-CI for one machine: the other end of the wire on SQLite, with a web page; in memory for tests.", []string{"agent/wire"}},
		"packaging":                  {"One manifest, four packages: .deb .rpm (nfpm), .pkg .msi (our writers).", []string{"service", "systemd", "launchd", "windows", "packaging/internal/"}},
		"packaging/repo":             {"Signed apt and yum repositories as static files.", []string{"packaging/internal/", "upgrader/swap"}},
		"cmd/internal/cli":           {"How a program starts, prints its error and picks its exit code.", []string{"service"}},
		"cmd/internal/batch":         {"What BK-CI's batch installation asks of an installer: another identity for a copy of an image, and the agent's verbs.", append(floor(), "cmd/internal/cli")},
		"cmd/internal/recovery": {"What a start of an agent does about upgrades: carry interrupted ones on, take over what a package brought, watch a new version.",
			append(floor(), "cmd/internal/cli")},
		"cmd/internal/lab":    {"The test lab: an install tree, a controller, real processes, a power switch.", program},
		"cmd/e2e":             {"Tests that drive the built programs. Nothing else.", []string{"cmd/internal/lab"}},
		"cmd/":                {"", program}, // the programs
		"packaging/internal/": {"", nil},     // one container format each
	}
}

// find returns the room of a folder: its own, or that of the folder above that ends in a slash.
func find(folder string) (room, bool) {
	all := rooms()
	if r, ok := all[folder]; ok {
		return r, true
	}
	r, ok := all[path.Dir(folder)+"/"]
	return r, ok
}

func allowed(may []string, folder string) bool {
	return slices.ContainsFunc(may, func(one string) bool {
		return one == folder || strings.HasSuffix(one, "/") && strings.HasPrefix(folder, one)
	})
}

// onePackage is what go list says about a package.
type onePackage struct {
	ImportPath   string
	Dir          string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Error        *struct{ Err string }
}

func list(t *testing.T, goos string) (module string, packages []onePackage) {
	t.Helper()
	run := func(args ...string) []byte {
		cmd := exec.Command("go", args...)
		cmd.Dir = filepath.Join("..", "..")
		cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, &stderr)
		}
		return out
	}
	module = strings.TrimSpace(string(run("list", "-m")))
	d := json.NewDecoder(bytes.NewReader(run("list", "-e", "-json=ImportPath,Dir,Imports,TestImports,XTestImports,Error", "./...")))
	for {
		var p onePackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return module, packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// TestArrowPointsDown holds every import against the table of the rooms, on all three systems.
func TestArrowPointsDown(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "windows"} {
		module, packages := list(t, goos)
		if len(packages) < 5 {
			t.Fatalf("go list found %d packages", len(packages))
		}
		for _, p := range packages {
			folder := strings.TrimPrefix(p.ImportPath, module+"/")
			home, known := find(folder)
			if !known {
				t.Errorf("%s: this folder is in no row of the table; add it to style and to this test", folder)
				continue
			}
			if p.Error != nil {
				t.Errorf("%s (%s): %s", folder, goos, p.Error.Err)
			}
			for _, one := range p.Imports {
				if ours, ok := strings.CutPrefix(one, module+"/"); ok && !allowed(home.may, ours) {
					t.Errorf("%s imports %s (%s): the arrow points down only", folder, ours, goos)
				}
				if (one == "testing" || strings.HasPrefix(one, "testing/")) && folder != "cmd/internal/lab" {
					t.Errorf("%s imports %s outside of its tests (%s)", folder, one, goos)
				}
			}
			if strings.HasPrefix(folder, "cmd/") {
				continue
			}
			for _, one := range slices.Concat(p.TestImports, p.XTestImports) {
				if strings.HasPrefix(one, module+"/cmd/") {
					t.Errorf("tests of %s import %s (%s): nothing below cmd knows programs", folder, one, goos)
				}
			}
		}
	}
}

// TestEveryRoomSaysItsSentence: a doc.go in each folder, with the sentence of the table.
func TestEveryRoomSaysItsSentence(t *testing.T) {
	module, packages := list(t, "linux")
	plain := func(text string) string {
		text = strings.NewReplacer("[", "", "]", "", "`", "", "*", "").Replace(strings.ToLower(text))
		return strings.TrimSuffix(strings.Join(strings.Fields(text), " "), ".")
	}
	for _, p := range packages {
		folder := strings.TrimPrefix(p.ImportPath, module+"/")
		home, _ := find(folder)
		parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, "doc.go"), nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Errorf("%s: %v", folder, err)
			continue
		}
		text := parsed.Doc.Text()
		if text == "" {
			t.Errorf("%s: doc.go has no package comment", folder)
		}
		if !strings.Contains(plain(text), plain(home.sentence)) {
			t.Errorf("%s: doc.go says %q, the table says %q", folder, strings.TrimSpace(text), home.sentence)
		}
	}
}

// TestNoFolderWithoutANoun: a function without a noun goes to its caller.
func TestNoFolderWithoutANoun(t *testing.T) {
	err := filepath.WalkDir(filepath.Join("..", ".."), func(name string, entry os.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		switch entry.Name() {
		case ".git", "testdata", "bin", "dist":
			return filepath.SkipDir
		case "util", "utils", "common", "misc", "types", "base", "helpers":
			t.Errorf("a folder named %s: %s", entry.Name(), name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
