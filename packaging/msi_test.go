package packaging

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/packaging/internal/msi"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/windows"
)

// msiSample is a manifest with small programs.
func msiSample(t testing.TB, version, goarch string) Manifest {
	t.Helper()
	tt, ok := t.(*testing.T)
	if !ok {
		t.Fatal("for tests")
	}
	m, err := Contents(wholeRelease(tt, version), MSI, goarch)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// opened is the database of a package.
func opened(t testing.TB, data []byte) *msi.Database {
	t.Helper()
	_, d, err := openMSI(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// property is one of a database.
func property(d *msi.Database, name string) string { return (&findings{d: d}).property(name) }

// tablesText writes all tables, but for what changes with every change of a text that is packed.
func tablesText(d *msi.Database) string {
	var b strings.Builder
	slices.SortFunc(d.Tables, func(a, b msi.Table) int { return strings.Compare(a.Name, b.Name) })
	for _, t := range d.Tables {
		if t.Name == "MsiFileHash" {
			continue
		}
		fmt.Fprintf(&b, "%s\n", t.Name)
		for _, row := range t.Rows {
			for i, cell := range row {
				switch {
				case t.Columns[i].Name == "FileSize":
					cell = "…"
				case cell == nil:
					cell = "-"
				}
				fmt.Fprintf(&b, "\t%v", cell)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// TestTablesOfTheInstaller: every cell, for reviewers.
func TestTablesOfTheInstaller(t *testing.T) {
	got := tablesText(opened(t, written(t, MSI, msiSample(t, "v1.2.4-dev.3", "amd64"))))
	golden := filepath.Join("testdata", "msi", "tables.txt")
	if *update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(golden), 0o755), os.WriteFile(golden, []byte(got), 0o644)); err != nil { //nolint:gosec // a golden file
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (-update writes it anew):\n%s", golden, got)
	}
}

// TestIdentitiesOfInstallers: Windows knows the product by one code, and each version of it by one of its own; the codes of
// components are the same for ever.
func TestIdentitiesOfInstallers(t *testing.T) {
	codes := map[string]string{}
	var components string
	for _, c := range []struct{ version, goarch, template string }{
		{"v1.2.4", "amd64", "x64;1033"}, {"v1.2.4", "arm64", "Arm64;1033"}, {"v1.2.5", "amd64", "x64;1033"}, {"v1.2.5-dev.1", "amd64", "x64;1033"},
	} {
		d := opened(t, written(t, MSI, msiSample(t, c.version, c.goarch)))
		if d.Summary.Template != c.template || property(d, "UpgradeCode") != "{6B1D4F0E-5B9B-4C8C-9B57-2C5E3C1E7D10}" {
			t.Errorf("%+v: template %s, upgrade code %s", c, d.Summary.Template, property(d, "UpgradeCode"))
		}
		for _, code := range []string{property(d, "ProductCode"), d.Summary.PackageCode} {
			if before, twice := codes[code]; twice || len(code) != 38 {
				t.Errorf("%+v has the code %s, as %s", c, code, before)
			}
			codes[code] = c.version + c.goarch
		}
		table, _ := d.Table("Component")
		list := ""
		for _, row := range table.Rows {
			list += table.Text(row, "Component") + table.Text(row, "ComponentId") + "\n"
		}
		if components == "" {
			components = list
		}
		if list != components || strings.Count(list, "{") < 10 {
			t.Errorf("%+v has the components\n%s, want\n%s", c, list, components)
		}
	}
}

func TestVersionsOfInstallers(t *testing.T) {
	last := -1
	for _, text := range []string{"1.2.3-1", "v1.2.3-alpha.7", "v1.2.3-beta.1", "v1.2.3-dev.9", "v1.2.3-dev.10", "v1.2.3-dev.4711", "v1.2.3-rc.1", "v1.2.3"} {
		core, place, err := msiVersion(text)
		if err != nil || core != "1.2.3" || place <= last || place >= 1<<31 {
			t.Errorf("%s: %s, place %d after %d, %v", text, core, place, last, err)
		}
		last = place
	}
	for _, text := range []string{"v256.0.0", "v1.256.0", "v1.0.65536", "latest"} {
		if core, _, err := msiVersion(text); err == nil {
			t.Errorf("%s is %s", text, core)
		}
	}
	if core, _, err := msiVersion("v255.255.65535"); err != nil || core != "255.255.65535" {
		t.Errorf("%s, %v", core, err)
	}
}

func TestShortNames(t *testing.T) {
	got := shortNames([]string{"devopsAgent.exe", "devopsDaemon.exe", "agent.toml.example", "LICENSE.txt", "enroll.d", "a b.c-d.e_f"})
	seen := map[string]bool{}
	for long, short := range got {
		base, ext, _ := strings.Cut(short, ".")
		if len(base) > 8 || len(ext) > 3 || seen[short] || strings.ToUpper(short) != short || strings.ContainsAny(base+ext, ".- _+,;=[]") {
			t.Errorf("%s is %s", long, short)
		}
		seen[short] = true
	}
	if len(seen) != 6 {
		t.Errorf("%v", got)
	}
}

// TestTheInstallerRegistersTheService that "devopsAgent install" does: every value of windows.Service is in one of the tables.
func TestTheInstallerRegistersTheService(t *testing.T) {
	m := msiSample(t, "v1.2.4", "amd64")
	d := opened(t, written(t, MSI, m))
	want := msiService(m.Layout)
	installs, _ := d.Table("ServiceInstall")
	failures, _ := d.Table("MsiServiceConfigFailureActions")
	configs, _ := d.Table("MsiServiceConfig")
	registry, _ := d.Table("Registry")
	events := map[string]string{}
	for _, row := range registry.Rows {
		events[registry.Text(row, "Name")] = registry.Text(row, "Value")
	}
	if len(installs.Rows) != 3 || len(failures.Rows) != 3 {
		t.Fatalf("%d services, %d with recovery", len(installs.Rows), len(failures.Rows))
	}
	for _, v := range want.Registry() {
		for i, row := range installs.Rows {
			component := installs.Text(row, "Component_")
			config := func(kind int) string {
				for _, c := range configs.Rows {
					if configs.Int(c, "ConfigType") == kind && configs.Text(c, "Component_") == component {
						return configs.Text(c, "Argument")
					}
				}
				return ""
			}
			ok := false
			switch v.Name {
			case "Description", "DisplayName":
				ok = installs.Text(row, v.Name) == v.Data
			case "ObjectName":
				ok = installs.Text(row, "StartName") == v.Data
			case "ErrorControl":
				ok = installs.Int(row, v.Name)&0xff == int(v.Data.(uint32))
			case "Type":
				ok = installs.Int(row, "ServiceType") == int(v.Data.(uint32))
			case "Start":
				ok = installs.Int(row, "StartType") == msiStarts()[map[string]int{"Service_automatic": 0, "Service_manual": 1, "Service_disabled": 2}[installs.Text(row, "ServiceInstall")]].number
			case "DelayedAutostart":
				ok = (config(3) == "1") == (installs.Text(row, "ServiceInstall") == "Service_automatic")
			case "FailureActionsOnNonCrashFailures":
				ok = config(4) == "1"
			case "PreshutdownTimeout":
				ok = config(7) == fmt.Sprint(v.Data)
			case "FailureActions":
				delays := strings.Split(failures.Text(failures.Rows[i], "DelayActions"), "[~]")
				ok = failures.Int(failures.Rows[i], "ResetPeriod") == int(want.ResetAfter/time.Second) && len(delays) == len(want.Recovery) &&
					failures.Text(failures.Rows[i], "Actions") == "1[~]1[~]1"
				for n, pause := range want.Recovery {
					ok = ok && delays[n] == strconv.Itoa(int(pause.Milliseconds()))
				}
			case "ImagePath":
				ok = events[v.Name] == `#%"[VendorDir]devopsDaemon.exe" [ServiceMode] --home "[CommonAppDataFolder]devops-agent"`
			case "CustomSource", "TypesSupported":
				ok = events[v.Name] == fmt.Sprintf("#%d", v.Data)
			case "EventMessageFile":
				ok = events[v.Name] == fmt.Sprintf("#%%%s", v.Data)
			}
			if !ok {
				t.Errorf("%s of %s is not what %v says", v.Name, installs.Text(row, "ServiceInstall"), v.Data)
			}
		}
	}
}

// doctored is the database of a package after a change, and the contents of its files.
func doctored(t *testing.T, change func(d *msi.Database, content map[string][]byte)) []msiFinding {
	t.Helper()
	m := msiSample(t, "v1.2.4", "amd64")
	content := map[string][]byte{}
	for _, f := range m.Files {
		if f.Kind == Dir {
			continue
		}
		data, err := f.Read()
		if err != nil {
			t.Fatal(err)
		}
		content[f.Path] = data
	}
	d, err := msiDatabase(m, content)
	if err != nil {
		t.Fatal(err)
	}
	change(d, content)
	return msiInspect(d, content)
}

// set changes a column of all rows of a table that have a text in some column, all for "".
func set(d *msi.Database, table, having, column string, value any) {
	for _, t := range d.Tables {
		if t.Name != table {
			continue
		}
		at := slices.IndexFunc(t.Columns, func(c msi.Column) bool { return c.Name == column })
		for _, row := range t.Rows {
			if having == "" || slices.Contains(row, any(having)) {
				row[at] = value
			}
		}
	}
}

// drop removes the rows that have a text in some column.
func drop(d *msi.Database, table, having string) {
	for i, t := range d.Tables {
		if t.Name == table {
			d.Tables[i].Rows = slices.DeleteFunc(t.Rows, func(row []any) bool { return slices.Contains(row, any(having)) })
		}
	}
}

func addRow(d *msi.Database, table string, row ...any) {
	for i, t := range d.Tables {
		if t.Name == table {
			d.Tables[i].Rows = append(t.Rows, row)
		}
	}
}

// keeps tries a rule on our package, which keeps it, and on changed ones, which do not.
func keeps(t *testing.T, rule msiRule, breaches map[string]func(d *msi.Database)) {
	t.Helper()
	for _, f := range doctored(t, func(*msi.Database, map[string][]byte) {}) {
		t.Errorf("our own package: %s", f.text)
	}
	for name, change := range breaches {
		found := doctored(t, func(d *msi.Database, _ map[string][]byte) { change(d) })
		if !slices.ContainsFunc(found, func(f msiFinding) bool { return f.rule == rule }) {
			t.Errorf("%s: not found; only %v", name, found)
		}
	}
}

// TestServicePathIsQuoted: CWE-428, of which new advisories come every month.
func TestServicePathIsQuoted(t *testing.T) {
	keeps(t, ruleUnquoted, map[string]func(d *msi.Database){
		"the system is left to quote": func(d *msi.Database) { drop(d, "Registry", "ImagePath") },
		"a path without quotes": func(d *msi.Database) {
			set(d, "Registry", "Service_ImagePath", "Value", `#%[VendorDir]devopsDaemon.exe service --home "[CommonAppDataFolder]devops-agent"`)
		},
		"home without quotes": func(d *msi.Database) {
			set(d, "ServiceInstall", "", "Arguments", "service --home [CommonAppDataFolder]devops-agent")
		},
		"quoted after it was started":    func(d *msi.Database) { set(d, "InstallExecuteSequence", "WriteRegistryValues", "Sequence", 5950) },
		"quoted before it is registered": func(d *msi.Database) { set(d, "InstallExecuteSequence", "WriteRegistryValues", "Sequence", 5000) },
	})
}

// TestServiceDirectoryIsClosed: what everybody may write to below C:\ProgramData has run as SYSTEM in many a product.
func TestServiceDirectoryIsClosed(t *testing.T) {
	lock := func(sddl string) func(d *msi.Database) {
		return func(d *msi.Database) { set(d, "MsiLockPermissionsEx", "", "SDDLText", sddl) }
	}
	keeps(t, ruleWritable, map[string]func(d *msi.Database){
		"home is not closed":          func(d *msi.Database) { drop(d, "MsiLockPermissionsEx", "Home") },
		"home inherits":               lock("D:AI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"),
		"users may write":             lock(windows.HomeSDDL + "(A;OICI;0x1301bf;;;BU)"),
		"everybody may do everything": lock("D:PAI(A;OICI;GA;;;WD)"),
		"a user owns it":              lock("O:BU" + windows.HomeSDDL),
		"the old table, which inherits": func(d *msi.Database) {
			d.Tables = append(d.Tables, msi.Table{Name: "LockPermissions", Columns: msi.Columns("LockObject s72 key")})
		},
		"another directory": func(d *msi.Database) {
			addRow(d, "Directory", "More", "CommonAppDataFolder", "MORE|more")
			addRow(d, "CreateFolder", "More", "Folder_HomeDir")
		},
	})
}

// TestRepairOpensNothing: CVE-2023-21800 and its like were windows and scripts of repairs, which users start and SYSTEM runs.
func TestRepairOpensNothing(t *testing.T) {
	action := func(kind int) func(d *msi.Database) {
		return func(d *msi.Database) { addRow(d, "CustomAction", "Evil", kind, "devopsAgent.exe", "status", nil) }
	}
	keeps(t, ruleRepair, map[string]func(d *msi.Database){
		"a repair is offered":      func(d *msi.Database) { drop(d, "Property", "ARPNOREPAIR") },
		"a change is offered":      func(d *msi.Database) { set(d, "Property", "ARPNOMODIFY", "Value", "0") },
		"an installed program":     action(18 + 1024 + 2048),
		"a program of the package": action(2),
		"a command line":           action(50 + 64),
		"a library":                action(1 + 1024 + 2048),
		"a script":                 action(38),
		"Visual Basic":             action(6 + 1024),
		"a dialog": func(d *msi.Database) {
			d.Tables = append(d.Tables, msi.Table{Name: "Dialog", Columns: msi.Columns("Dialog s72 key"), Rows: [][]any{{"Welcome"}}})
		},
		"a shortcut that repairs": func(d *msi.Database) {
			d.Tables = append(d.Tables, msi.Table{Name: "Shortcut", Columns: msi.Columns("Shortcut s72 key"), Rows: [][]any{{"Agent"}}})
		},
	})
}

// TestNoSecretInTheLog: msiexec /l*v writes down every property that is not hidden, and tools collect those logs.
func TestNoSecretInTheLog(t *testing.T) {
	keeps(t, ruleLog, map[string]func(d *msi.Database){
		"nothing is hidden":           func(d *msi.Database) { drop(d, "Property", "MsiHiddenProperties") },
		"the remembered one is not":   func(d *msi.Database) { set(d, "Property", "MsiHiddenProperties", "Value", "TOKEN;TOKEN_FILE") },
		"a token on the command line": func(d *msi.Database) { drop(d, "LaunchCondition", "NOT TOKEN") },
		"a token in the registry": func(d *msi.Database) {
			addRow(d, "Registry", "T", 2, windows.AnswersKey, "Token", "[TOKEN]", "Answers")
		},
		"a token for the service":       func(d *msi.Database) { set(d, "ServiceInstall", "", "Arguments", "service --token [TOKEN]") },
		"a password":                    func(d *msi.Database) { set(d, "ServiceInstall", "", "Password", "[SERVICE_PASSWORD]") },
		"another property of this kind": func(d *msi.Database) { addRow(d, "AppSearch", "PROXY_PASSWORD", "Gateway") },
	})
}

// TestLibrariesComeFromTheSystem: no planted library is loaded by a program of ours, and PATH leads nowhere where one could be planted.
func TestLibrariesComeFromTheSystem(t *testing.T) {
	keeps(t, ruleLibrary, map[string]func(d *msi.Database){
		"home in PATH":             func(d *msi.Database) { set(d, "Environment", "", "Value", "[~];"+msiHomePath) },
		"a directory of C: before": func(d *msi.Database) { set(d, "Environment", "", "Value", `C:\tools;[~]`) },
	})
	for _, name := range []string{"version.dll", "devopsAgent.exe.local", "devopsAgent.exe.manifest"} {
		found := doctored(t, func(_ *msi.Database, content map[string][]byte) { content["VENDOR/"+name] = []byte("x") })
		if len(found) != 1 || found[0].rule != ruleLibrary {
			t.Errorf("%s: %v", name, found)
		}
	}
	// A real program, built by this test: it names the system's libraries only.
	program := filepath.Join(t.TempDir(), "agent.exe")
	build := exec.Command("go", "build", "-o", program, "../cmd/upgrader")
	build.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	real, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	for library, want := range map[string]int{"kernel32.dll": 0, "evil3264.dll": 1} {
		patched := bytes.ReplaceAll(real, []byte("kernel32.dll"), []byte(library))
		if !bytes.Contains(patched, []byte(library)) {
			t.Fatalf("the program does not name %s", library)
		}
		found := doctored(t, func(_ *msi.Database, content map[string][]byte) { content["VENDOR/real.exe"] = patched })
		if len(found) != want {
			t.Errorf("a program that loads %s: %v", library, found)
		}
	}
}

// TestDaemonCannotBeReplaced: SYSTEM runs no program from a directory that users, or the command line of msiexec, choose.
func TestDaemonCannotBeReplaced(t *testing.T) {
	keeps(t, ruleReplaced, map[string]func(d *msi.Database){
		"a daemon in home":            func(d *msi.Database) { set(d, "Component", "File_devopsDaemon.exe", "Directory_", msiHomeDir) },
		"programs below ProgramData":  func(d *msi.Database) { set(d, "Directory", msiVendorDir, "Directory_Parent", "CommonAppDataFolder") },
		"programs for 32 bits":        func(d *msi.Database) { set(d, "Component", "File_devopsDaemon.exe", "Attributes", 0) },
		"a place by the command line": func(d *msi.Database) { addRow(d, "Directory", "INSTALLDIR", "ProgramFiles64Folder", "X|x") },
		"an account that is told":     func(d *msi.Database) { set(d, "ServiceInstall", "", "StartName", "[ACCOUNT]") },
	})
}

// TestInstalledForTheMachine, with the rights of an administrator.
func TestInstalledForTheMachine(t *testing.T) {
	keeps(t, rulePerMachine, map[string]func(d *msi.Database){
		"for a user":     func(d *msi.Database) { set(d, "Property", "ALLUSERS", "Value", "2") },
		"without rights": func(d *msi.Database) { d.Summary.WordCount = 10 },
	})
}

// TestNoInstallerOfAnUnsafeManifest: what breaks a rule is not written.
func TestNoInstallerOfAnUnsafeManifest(t *testing.T) {
	for name, add := range map[string]File{
		"a library":              {Path: "VENDOR/version.dll", Mode: 0o644, Data: []byte("x")},
		"a file in home":         {Path: "HOME/agent.toml", Mode: 0o600, Data: []byte("x")},
		"configuration":          {Path: "VENDOR/z.toml", Kind: Config, Mode: 0o600, Data: []byte("x")},
		"a link":                 {Path: "VENDOR/z", Kind: Link, Target: "x"},
		"somewhere else":         {Path: "WINDOWS/z", Mode: 0o644, Data: []byte("x")},
		"an unlisted directory":  {Path: "VENDOR/z/z", Mode: 0o644, Data: []byte("x")},
		"a name with a bracket":  {Path: "VENDOR/z[TOKEN]", Mode: 0o644, Data: []byte("x")},
		"a file for a directory": {Path: "HOME", Mode: 0o644, Data: []byte("x")},
	} {
		m := msiSample(t, "v1.2.4", "amd64")
		m.Files = append(slices.DeleteFunc(slices.Clone(m.Files), func(f File) bool { return f.Path == add.Path }), add)
		sortFiles(m.Files)
		err := Write(t.Context(), MSI, m, Options{}, &bytes.Buffer{})
		if _, ok := errors.AsType[*ManifestError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := msiSample(t, "v1.2.4", "amd64")
	m.Files = slices.DeleteFunc(slices.Clone(m.Files), func(f File) bool { return f.Path == msiDaemon })
	if err := Write(t.Context(), MSI, m, Options{}, &bytes.Buffer{}); err == nil {
		t.Error("without devopsDaemon.exe: written")
	}
}

// tool skips a test on a machine that lacks a program.
func tool(t *testing.T, name, of string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("this machine has no %s (%s)", name, of)
	}
}

// command runs a program of others and returns what it printed.
func command(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v: %s%s", name, args, err, &stderr, out)
	}
	return out
}

// msiFile is a package on the disk, and its manifest.
func msiFile(t *testing.T) (string, Manifest) {
	t.Helper()
	m := msiSample(t, "v1.2.4", "amd64")
	file := filepath.Join(t.TempDir(), MSI.FileName(m))
	if err := os.WriteFile(file, written(t, MSI, m), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, m
}

// sums are the digests of the files of a manifest, by their names.
func sums(t *testing.T, m Manifest) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, f := range m.Files {
		if f.Kind == Dir {
			continue
		}
		data, err := f.Read()
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		all[path.Base(f.Path)] = hex.EncodeToString(sum[:])
	}
	return all
}

// TestMsitoolsReadsTheInstaller: GNOME's reader finds the tables that we wrote, cell by cell, and the files.
func TestMsitoolsReadsTheInstaller(t *testing.T) {
	tool(t, "msiinfo", "msitools")
	file, m := msiFile(t)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := opened(t, data)
	for _, table := range d.Tables {
		var want []string
		for _, row := range table.Rows {
			cells := make([]string, len(row))
			for i, cell := range row {
				if cell != nil {
					cells[i] = fmt.Sprint(cell)
				}
			}
			want = append(want, strings.Join(cells, "\t"))
		}
		lines := strings.Split(strings.ReplaceAll(string(command(t, "", "msiinfo", "export", file, table.Name)), "\r", ""), "\n")
		if len(lines) < 3 {
			t.Errorf("%s: %q", table.Name, lines)
			continue
		}
		names, types := strings.Split(lines[0], "\t"), strings.Split(lines[1], "\t")
		for i, c := range table.Columns {
			if names[i] != c.Name || types[i] != c.Type {
				t.Errorf("%s: column %s %s, want %s %s", table.Name, names[i], types[i], c.Name, c.Type)
			}
		}
		got := slices.DeleteFunc(lines[3:], func(line string) bool { return line == "" })
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s:\n%q, want\n%q", table.Name, got, want)
		}
	}
	dir := t.TempDir()
	command(t, "", "msiextract", "-C", dir, file)
	for name, sum := range sums(t, m) {
		found := ""
		_ = filepath.WalkDir(dir, func(p string, _ os.DirEntry, _ error) error {
			if filepath.Base(p) == name {
				found = p
			}
			return nil
		})
		content, err := os.ReadFile(found)
		if got := sha256.Sum256(content); err != nil || hex.EncodeToString(got[:]) != sum {
			t.Errorf("%s: %v, digest %x", name, err, got)
		}
	}
}

// TestSevenZipReadsTheInstaller: the compound file, and the cabinet in it.
func TestSevenZipReadsTheInstaller(t *testing.T) {
	tool(t, "7z", "7zip or p7zip-full")
	file, m := msiFile(t)
	dir := t.TempDir()
	command(t, dir, "7z", "x", "-y", "-tCompound", file)
	command(t, dir, "7z", "t", "-tCab", "agent.cab")
	command(t, dir, "7z", "x", "-y", "-tCab", "-ofiles", "agent.cab")
	want := sums(t, m)
	for _, p := range msiPacked(m) {
		data, err := os.ReadFile(filepath.Join(dir, "files", p.key))
		if got := sha256.Sum256(data); err != nil || hex.EncodeToString(got[:]) != want[path.Base(p.file.Path)] {
			t.Errorf("%s: %v, digest %x", p.key, err, got)
		}
	}
}

// certificate makes a key for code in a PKCS#12 file.
func certificate(t *testing.T, dir, word string) (pfx, ca string) {
	t.Helper()
	key, ca, pfx := filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pfx")
	command(t, dir, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", ca, "-days", "3650", "-subj", "/CN=devops-agent test",
		"-addext", "extendedKeyUsage=codeSigning")
	passing := filepath.Join(dir, "word")
	if err := os.WriteFile(passing, []byte(word), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, dir, "openssl", "pkcs12", "-export", "-in", ca, "-inkey", key, "-out", pfx, "-passout", "file:"+passing)
	return pfx, ca
}

// TestAuthenticode: package and programs are signed with a key, osslsigncode verifies both, any change is noticed, and the same key
// gives the same bytes again.
func TestAuthenticode(t *testing.T) {
	tool(t, "osslsigncode", "osslsigncode")
	tool(t, "openssl", "openssl")
	dir, temporary := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temporary)
	const word = "a pass word"
	pfx, ca := certificate(t, dir, word)
	m := msiSample(t, "v1.2.4", "amd64")
	program := filepath.Join(dir, "devopsDaemon.exe") // osslsigncode signs real programs only
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "../cmd/upgrader")
	build.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, f := range m.Files {
		if f.Program {
			m.Files[i].Source = program
		}
	}
	m.Time = time.Now().Add(-time.Minute).Truncate(2 * time.Second).UTC() // the certificate is valid from now on
	sign := func(o Options) []byte {
		t.Helper()
		var out bytes.Buffer
		if err := Write(t.Context(), MSI, m, o, &out); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	signed := sign(Options{PFX: pfx, PFXWord: word})
	if !bytes.Equal(sign(Options{PFX: pfx, PFXWord: word}), signed) {
		t.Error("signed again: other bytes")
	}
	if len(signed) <= len(sign(Options{})) {
		t.Error("the signed package is no longer than the other one")
	}
	file := filepath.Join(dir, "signed.msi")
	verify := func(name string, data []byte) error {
		t.Helper()
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("osslsigncode", "verify", "-CAfile", ca, "-in", name).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := verify(file, signed); err != nil {
		t.Error(err)
	}
	f, d, err := openMSI(bytes.NewReader(signed), int64(len(signed)))
	if err != nil {
		t.Fatal(err)
	}
	content, err := msiContent(f, d, int64(len(signed)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := List(MSI, bytes.NewReader(signed), int64(len(signed)))
	if err != nil {
		t.Fatal(err)
	}
	if found, err := Differences(m, l); err != nil || len(found) > 0 {
		t.Errorf("signed, it is taken for another package: %v\n%s", err, strings.Join(found, "\n"))
	}
	for i, e := range l.Entries {
		if (e.Bare != "") != (path.Ext(e.Path) == ".exe") {
			t.Errorf("%s: without a signature %q", e.Path, e.Bare)
		}
		if e.Bare != "" {
			l.Entries[i].Bare = strings.Repeat("0", 64)
		}
	}
	if found, err := Differences(m, l); err != nil || len(found) != 4 {
		t.Errorf("other programs that are signed: %v\n%s", err, strings.Join(found, "\n"))
	}
	daemon := content["devopsDaemon.exe"].Data
	if err := verify(filepath.Join(dir, "daemon.exe"), daemon); err != nil {
		t.Error(err)
	}
	changed := bytes.Clone(signed)
	at := bytes.Index(changed, []byte("CK\xec")) // a block of the cabinet
	if at < 0 {
		at = len(changed) / 2
	}
	changed[at+100] ^= 1
	if err := verify(file, changed); err == nil {
		t.Error("a changed package verifies")
	}
	if err := verify(file, sign(Options{})); err == nil {
		t.Error("a package without signature verifies")
	}
	err = Write(t.Context(), MSI, m, Options{PFX: pfx, PFXWord: "wrong"}, &bytes.Buffer{})
	if err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("the wrong passphrase: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(temporary, "sign-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestNoSignerIsAnErrorWithAHint, and nothing unsigned in the place of what should be signed.
func TestNoSignerIsAnErrorWithAHint(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var out bytes.Buffer
	err := Write(context.Background(), MSI, msiSample(t, "v1.2.4", "amd64"), Options{PFX: "key.pfx"}, &out)
	var hinter interface{ Hint() string }
	if !errors.As(err, &hinter) || !strings.Contains(hinter.Hint(), "osslsigncode") || out.Len() > 0 {
		t.Errorf("%v, %d bytes", err, out.Len())
	}
}

func TestForeignInstallers(t *testing.T) {
	for name, change := range map[string]func(f []byte) []byte{
		"a text": func([]byte) []byte { return []byte("MZ") },
		"another class": func(b []byte) []byte {
			at := bytes.Index(b, []byte("\x84\x10\x0c\x00\x00\x00\x00\x00\xc0"))
			b[at]++
			return b
		},
	} {
		b := change(written(t, MSI, msiSample(t, "v1.2.4", "amd64")))
		if l, err := List(MSI, bytes.NewReader(b), int64(len(b))); err == nil {
			t.Errorf("%s: %s", name, l)
		}
	}
}

// FuzzListMSI: foreign bytes are an error or a listing, within bounds.
func FuzzListMSI(f *testing.F) {
	m := Manifest{Name: "x", Version: "1.0.0", Summary: "s", Maintainer: "m", GOOS: "windows", GOARCH: "amd64", Time: time.Unix(1, 0), Layout: service.Packaged("windows"), Files: []File{
		{Path: msiHome, Kind: Dir, Mode: 0o700}, {Path: msiVendor, Kind: Dir, Mode: 0o755}, {Path: msiDaemon, Mode: 0o755, Data: []byte("MZ"), Program: true}}}
	sortFiles(m.Files)
	f.Add(written(f, MSI, m))
	f.Add([]byte("\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := List(MSI, bytes.NewReader(data), int64(len(data)))
		if err == nil && len(l.Entries) > 0 && l.String() == "" {
			t.Error("entries without a line")
		}
	})
}
