package packaging

import (
	"bytes"
	"debug/pe"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/devops-agent/devops-agent/packaging/internal/msi"
	"github.com/devops-agent/devops-agent/windows"
)

// An msiRule is one way in which packages of Windows have given SYSTEM away. Each had advisories of its own.
type msiRule string

// The rules.
const (
	ruleUnquoted   msiRule = "unquoted service path"      // of C:\Program Files\x.exe Windows tries C:\Program.exe first
	ruleWritable   msiRule = "writable service directory" // everybody may make files in new directories below C:\ and C:\ProgramData
	ruleRepair     msiRule = "repair as SYSTEM"           // any user can start one, and use what it opens
	ruleLog        msiRule = "secret in the log"          // msiexec /l*v writes every property, and the process list shows the command line
	ruleLibrary    msiRule = "library search path"        // a program loads what lies beside it, or in PATH, before the system's own
	ruleReplaced   msiRule = "replaceable daemon path"    // SYSTEM runs what the command line of an installer, or a user, has put elsewhere
	rulePerMachine msiRule = "per machine"                // what is installed for one user is where that user may write
)

// msiFinding is a breach of a rule.
type msiFinding struct {
	rule msiRule
	text string
}

// findings collects them.
type findings struct {
	d   *msi.Database
	all []msiFinding
}

func (f *findings) add(rule msiRule, format string, args ...any) {
	f.all = append(f.all, msiFinding{rule, string(rule) + ": " + fmt.Sprintf(format, args...)})
}

// rows calls do with each row of a table.
func (f *findings) rows(name string, do func(text func(column string) string, number func(column string) int)) {
	t, _ := f.d.Table(name)
	for _, row := range t.Rows {
		do(func(column string) string { return t.Text(row, column) }, func(column string) int { return t.Int(row, column) })
	}
}

// property is the value of a property.
func (f *findings) property(name string) (value string) {
	f.rows("Property", func(text func(string) string, _ func(string) int) {
		if text("Property") == name {
			value = text("Value")
		}
	})
	return value
}

// sequence is the number of an action in the installation, 0 for none.
func (f *findings) sequence(action string) (at int) {
	f.rows("InstallExecuteSequence", func(text func(string) string, number func(string) int) {
		if text("Action") == action {
			at = number("Sequence")
		}
	})
	return at
}

// msiInspect holds a database and the files of its cabinet against all rules. No package is written that breaks one.
func msiInspect(d *msi.Database, content map[string][]byte) []msiFinding {
	f := &findings{d: d}
	f.quotes()
	f.closed()
	f.repairs()
	f.secrets()
	f.libraries(content)
	f.daemon()
	return f.all
}

// quotes wants every service's command line in quotes, whatever the system does about it.
func (f *findings) quotes() {
	f.rows("ServiceInstall", func(text func(string) string, _ func(string) int) {
		name, args := text("Name"), text("Arguments")
		for rest := args; ; {
			before, after, ok := strings.Cut(rest, "[")
			if !ok {
				break
			}
			if property, _, _ := strings.Cut(after, "]"); strings.HasSuffix(property, "Folder") && !strings.HasSuffix(before, `"`) {
				f.add(ruleUnquoted, "service %s: a path without quotes among its arguments: %s", name, args)
			}
			rest = after
		}
		quoted := false
		f.rows("Registry", func(value func(string) string, _ func(string) int) {
			if value("Key") == servicesAt+name && value("Name") == "ImagePath" {
				quoted = strings.HasPrefix(value("Value"), `#%"[`) && strings.Contains(value("Value"), `.exe" `)
			}
		})
		install, write, begin := f.sequence("InstallServices"), f.sequence("WriteRegistryValues"), f.sequence("StartServices")
		if !quoted || install == 0 || install > write || write > begin {
			f.add(ruleUnquoted, "service %s: its path is not quoted before it is started", name)
		}
	})
}

// closed wants the directories that SYSTEM runs programs from, or keeps secrets in, closed to everybody else: Program Files is; all
// others need a list of their own.
func (f *findings) closed() {
	dirs := msiDirs{d: f.d}
	closed := map[string]bool{}
	f.rows("MsiLockPermissionsEx", func(text func(string) string, _ func(string) int) {
		if sddl := text("SDDLText"); !closes(sddl) {
			f.add(ruleWritable, "%s: others have rights by %s", text("LockObject"), sddl)
		} else if text("Table") == "CreateFolder" {
			closed[dirs.path(text("LockObject"), 0)] = true
		}
	})
	if t, ok := f.d.Table("LockPermissions"); ok {
		f.add(ruleWritable, "LockPermissions with %d rows: it cannot say that nothing is inherited", len(t.Rows))
	}
	dirs.locked = closed
	f.rows("CreateFolder", func(text func(string) string, _ func(string) int) {
		if dir := dirs.path(text("Directory_"), 0); !below(dir, msiVendor) && !dirs.closed(dir) {
			f.add(ruleWritable, "directory %s is made with the rights of the one above", dir)
		}
	})
}

// closes reports whether only SYSTEM and Administrators have rights by a list, and nothing is inherited.
func closes(sddl string) bool {
	owner, list, ok := strings.Cut(sddl, "D:P")
	if !ok || owner != "" && owner != "O:BA" && owner != "O:SY" || strings.Contains(list, "S:") {
		return false
	}
	_, list, _ = strings.Cut(list, "(")
	for one := range strings.SplitSeq(strings.TrimSuffix(list, ")"), ")(") {
		if fields := strings.Split(one, ";"); len(fields) != 6 || fields[0] != "A" || fields[5] != "SY" && fields[5] != "BA" {
			return false
		}
	}
	return true
}

// below reports whether a path of the manifest is in a directory, or is it.
func below(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

// repairs wants no repair from the list of installed programs, and nothing in the package that could show a window or run a script
// or a library of it: what a repair does, it does as SYSTEM, and users may start one.
func (f *findings) repairs() {
	for _, name := range []string{"ARPNOREPAIR", "ARPNOMODIFY"} {
		if f.property(name) != "1" {
			f.add(ruleRepair, "%s is not set", name)
		}
	}
	f.rows("CustomAction", func(text func(string) string, number func(string) int) {
		const setProperty, setDirectory, fail = 51, 35, 19
		if kind := number("Type") & 0x3f; kind != setProperty && kind != setDirectory && kind != fail {
			f.add(ruleRepair, "action %s is of type %d, which runs something", text("Action"), number("Type"))
		}
	})
	for _, table := range []string{"Binary", "Dialog", "Shortcut", "EmbeddedUI", "MsiEmbeddedUI"} {
		if t, ok := f.d.Table(table); ok && len(t.Rows) > 0 {
			f.add(ruleRepair, "table %s has rows", table)
		}
	}
	if f.property("ALLUSERS") != "1" {
		f.add(rulePerMachine, "ALLUSERS is not 1")
	}
	const elevated = 8 // of the summary's word count: may be installed without the rights of an administrator
	if f.d.Summary.WordCount&elevated != 0 {
		f.add(rulePerMachine, "it asks for no rights")
	}
}

// secretWords are in the names of properties that hold a secret, or its place.
func secretWords() []string { return []string{"TOKEN", "PASSWORD", "SECRET", "CREDENTIAL"} }

func secretName(name string) bool {
	return slices.ContainsFunc(secretWords(), func(word string) bool { return strings.Contains(strings.ToUpper(name), word) })
}

// secrets wants every property with such a name hidden, the token itself refused, and nothing of it in any other table: what they
// hold ends up in the registry, in a log or on a command line.
func (f *findings) secrets() {
	hidden := strings.Split(f.property("MsiHiddenProperties"), ";")
	named := map[string]bool{"TOKEN": true}
	for _, name := range strings.Split(f.property("SecureCustomProperties"), ";") {
		named[name] = true
	}
	f.rows("AppSearch", func(text func(string) string, _ func(string) int) { named[text("Property")] = true })
	for name := range named {
		if secretName(name) && !slices.Contains(hidden, name) {
			f.add(ruleLog, "property %s is not hidden", name)
		}
	}
	refused := false
	f.rows("LaunchCondition", func(text func(string) string, _ func(string) int) {
		refused = refused || text("Condition") == "NOT TOKEN"
	})
	if !refused {
		f.add(ruleLog, "a token on the command line is taken")
	}
	f.rows("ServiceInstall", func(text func(string) string, _ func(string) int) {
		if text("Password") != "" {
			f.add(ruleLog, "service %s has a password", text("Name"))
		}
	})
	for _, t := range f.d.Tables {
		for _, row := range t.Rows {
			for _, cell := range row {
				text, _ := cell.(string)
				for rest := text; ; {
					_, after, ok := strings.Cut(rest, "[")
					if !ok {
						break
					}
					name, _, _ := strings.Cut(after, "]")
					if secretName(name) && !strings.HasSuffix(name, "_FILE") { // the name of a file is none
						f.add(ruleLog, "table %s uses [%s]", t.Name, name)
					}
					rest = after
				}
			}
		}
	}
}

// systemLibraries are those that Windows loads from its own directory alone, whatever lies beside a program.
func systemLibraries() []string {
	return []string{"kernel32.dll", "ntdll.dll", "advapi32.dll", "user32.dll", "gdi32.dll", "ole32.dll", "shell32.dll", "ws2_32.dll", "msvcrt.dll"}
}

// libraries wants programs that name no library but those, no library beside them, and no directory in PATH that others may write to.
func (f *findings) libraries(content map[string][]byte) {
	for _, name := range slices.Sorted(maps.Keys(content)) {
		switch strings.ToLower(path.Ext(name)) {
		case ".dll", ".ocx", ".cpl", ".local", ".manifest", ".config":
			f.add(ruleLibrary, "%s lies beside the programs", name)
		case ".exe":
			program, err := pe.NewFile(bytes.NewReader(content[name]))
			if err != nil {
				continue // no program, and nothing that loads anything
			}
			libraries, err := program.ImportedLibraries()
			if err != nil {
				f.add(ruleLibrary, "%s: its libraries cannot be read: %v", name, err)
			}
			symbols, err := program.ImportedSymbols() // names them also where the other list is not implemented
			if err != nil {
				f.add(ruleLibrary, "%s: its libraries cannot be read: %v", name, err)
			}
			for _, symbol := range symbols {
				if _, library, ok := strings.Cut(symbol, ":"); ok {
					libraries = append(libraries, library)
				}
			}
			slices.Sort(libraries)
			for _, library := range slices.Compact(libraries) {
				if !slices.Contains(systemLibraries(), strings.ToLower(library)) {
					f.add(ruleLibrary, "%s loads %s", name, library)
				}
			}
		}
	}
	f.rows("Environment", func(text func(string) string, _ func(string) int) {
		if strings.Contains(strings.ToUpper(text("Name")), "PATH") && text("Value") != "[~];"+msiVendorPath {
			f.add(ruleLibrary, "PATH gets %s", text("Value"))
		}
	})
}

// daemon wants the programs of all services in a directory below Program Files whose place no command line can change.
func (f *findings) daemon() {
	dirs := msiDirs{d: f.d}
	of := dirs.ofComponents()
	f.rows("ServiceInstall", func(text func(string) string, _ func(string) int) {
		dir := of[text("Component_")]
		if place := dirs.path(dir, 0); !below(place, msiVendor) {
			f.add(ruleReplaced, "the program of service %s is in %s", text("Name"), place)
		}
		if account := text("StartName"); account != windows.LocalSystem {
			f.add(ruleReplaced, "service %s runs as %q", text("Name"), account)
		}
	})
	f.rows("Directory", func(text func(string) string, _ func(string) int) {
		key := text("Directory")
		if key != "TARGETDIR" && key == strings.ToUpper(key) {
			f.add(ruleReplaced, "directory %s can be moved by %s=… on the command line", dirs.path(key, 0), key)
		}
		if key == msiVendorDir && text("Directory_Parent") != "ProgramFiles64Folder" {
			f.add(ruleReplaced, "the programs are in %s", text("Directory_Parent"))
		}
	})
	f.rows("Component", func(text func(string) string, number func(string) int) {
		if number("Attributes")&component64 == 0 {
			f.add(ruleReplaced, "component %s is one of 32 bits", text("Component"))
		}
	})
}
