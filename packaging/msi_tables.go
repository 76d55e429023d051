package packaging

import (
	"cmp"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/packaging/internal/msi"
	"github.com/devops-agent/devops-agent/windows"
)

// Names and conditions of the tables.
const (
	servicesAt = `SYSTEM\CurrentControlSet\Services\`

	component64        = 256
	componentPermanent = 16
	rootMachine        = 2  // HKEY_LOCAL_MACHINE
	locateRaw64        = 18 // a value as it is, in the registry of 64-bit programs
	vital              = 512
)

// start is a way to start the service, and when it is chosen: an upgrade keeps what it finds.
type start struct {
	name, suffix string
	number       int // winsvc.h
	condition    string
	delayed      bool
}

func msiStarts() []start {
	return []start{
		{"automatic", "", 2, `NOT (SERVICE_START="#3" OR SERVICE_START="#4")`, true},
		{"manual", ".manual", 3, `SERVICE_START="#3"`, false},
		{"disabled", ".disabled", 4, `SERVICE_START="#4"`, false},
	}
}

// answer is a property that is set on the command line of the installer and remembered for the next one.
type answer struct{ property, value string }

func msiAnswers() []answer {
	return []answer{{"GATEWAY", windows.AnswerGateway}, {"NAME", windows.AnswerName}, {"PROJECT", windows.AnswerProject},
		{"TOKEN_FILE", windows.AnswerTokenFile}}
}

// Whether the service is started: START decides; else a new installation starts it, and an upgrade leaves it stopped when somebody
// stopped it. What is disabled cannot be started. What is not started is noted as stopped, for the next upgrade.
const (
	msiStartIf = `SERVICE_START<>"#4" AND (START="1" OR (NOT START AND SERVICE_STOPPED<>"#1"))`
	msiNoteIf  = `START="0" OR (NOT START AND SERVICE_STOPPED="#1")`
)

// tables collects what is put into a database.
type tables struct {
	d *msi.Database
}

func (t tables) add(name, columns string, rows ...[]any) {
	t.d.Tables = append(t.d.Tables, msi.Table{Name: name, Columns: msi.Columns(columns), Rows: rows})
}

// msiDatabase is everything about a package but its cabinet.
func msiDatabase(m Manifest, content map[string][]byte) (*msi.Database, error) {
	core, place, err := msiVersion(m.Version)
	if err != nil {
		return nil, err
	}
	d := &msi.Database{Summary: msi.Summary{
		Title: "Installation Database", Subject: m.Name + " " + m.Version, Author: vendor, Keywords: "Installer", Comments: m.Summary,
		Template: msiPlatform(m.GOARCH) + ";1033", Created: m.Time, Schema: 500, WordCount: 2, Program: "packager", Security: 2,
	}}
	t := tables{d}
	t.properties(m, core)
	t.product(core, place)
	c := newComponents(m)
	t.files(m, c, content)
	t.service(m, c)
	t.registry(m, c, place)
	if err := t.launch(place); err != nil {
		return nil, err
	}
	t.actions()
	t.components(m, c)
	return d, nil
}

func (t tables) properties(m Manifest, core string) {
	secure := []string{"NEWER", "OLDER", "SAME", "SAME_PLACE", "SERVICE_MODE", "SERVICE_START", "SERVICE_STOPPED", "START"}
	for _, a := range msiAnswers() {
		secure = append(secure, a.property, "LAST_"+a.property)
	}
	slices.Sort(secure)
	rows := [][]any{
		{"ALLUSERS", "1"},
		{"ARPCONTACT", m.Maintainer},
		{"ARPCOMMENTS", m.Summary},
		{"ARPNOMODIFY", "1"},
		{"ARPNOREPAIR", "1"}, // a repair runs as SYSTEM for a user who is none
		{"ARPURLINFOABOUT", m.Homepage},
		{"DISABLEADVTSHORTCUTS", "1"},
		{"Manufacturer", vendor},
		{"MSIRESTARTMANAGERCONTROL", "DisableShutdown"}, // a build that runs the package's worker is not to be ended
		{"MsiHiddenProperties", "LAST_TOKEN_FILE;TOKEN;TOKEN_FILE"},
		{"ProductCode", guid("product", m.Name, m.Version, m.GOARCH)},
		{"ProductLanguage", "1033"},
		{"ProductName", m.Name},
		{"ProductVersion", core},
		{"REINSTALLMODE", "amus"}, // files are replaced, whatever somebody has done to those that are there
		{"SecureCustomProperties", strings.Join(secure, ";")},
		{"ServiceMode", "service"},
		{"UpgradeCode", msiUpgradeCode},
	}
	rows = slices.DeleteFunc(rows, func(row []any) bool { return row[1] == "" })
	t.add("Property", "Property s72 key, Value l0", rows...)
}

// product says which other versions are replaced, and which are not. Windows Installer compares three numbers only; among the
// pre-releases of one version, and that version, the place that the last one has left in the registry decides.
func (t tables) product(core string, place int) {
	const migrate, detect, fromHere, toHere = 1, 2, 256, 512
	t.add("Upgrade", "UpgradeCode s38 key, VersionMin S20 key, VersionMax S20 key, Language S255 key, Attributes i4 key, Remove S255, ActionProperty s72",
		[]any{msiUpgradeCode, nil, core, nil, migrate, nil, "OLDER"},
		[]any{msiUpgradeCode, core, core, nil, migrate | fromHere | toHere, nil, "SAME"},
		[]any{msiUpgradeCode, core, nil, nil, detect, nil, "NEWER"})
}

// components gives every file and directory its component: the unit that is installed and removed. Their codes never change as
// long as the path stays.
type components struct {
	files []packed
	dirs  map[string]string // directory of the manifest by its key
}

func newComponents(m Manifest) components {
	c := components{files: msiPacked(m), dirs: map[string]string{}}
	for _, f := range m.Files {
		if f.Kind == Dir {
			c.dirs[f.Path] = msiDirKey(f.Path)
		}
	}
	return c
}

// msiDirKey is the key of a directory. None can be set on the command line.
func msiDirKey(dir string) string {
	switch dir {
	case msiVendor:
		return msiVendorDir
	case msiHome:
		return msiHomeDir
	}
	return "Dir_" + id(dir)
}

func (c components) ofFile(p packed) string   { return "File_" + p.key }
func (c components) ofDir(path string) string { return "Folder_" + msiDirKey(path) }

// daemons are the components of the service.
func (c components) daemons() map[string]start {
	all := map[string]start{}
	for _, p := range c.files {
		for _, s := range msiStarts() {
			if p.start == s.name {
				all[c.ofFile(p)] = s
			}
		}
	}
	return all
}

// files fills the tables of directories and files.
func (t tables) files(m Manifest, c components, content map[string][]byte) {
	var names []string
	for _, f := range m.Files {
		if strings.Contains(f.Path, "/") {
			names = append(names, path.Base(f.Path))
		}
	}
	short := shortNames(names)
	root := shortNames([]string{m.Name})[m.Name] + "|" + m.Name
	directories := [][]any{
		{"TARGETDIR", nil, "SourceDir"},
		{"ProgramFiles64Folder", "TARGETDIR", "."},
		{"CommonAppDataFolder", "TARGETDIR", "."},
		{msiVendorDir, "ProgramFiles64Folder", root},
		{msiHomeDir, "CommonAppDataFolder", root},
	}
	var folders, files, hashes [][]any
	for _, f := range m.Files {
		if f.Kind != Dir {
			continue
		}
		base := path.Base(f.Path)
		if strings.Contains(f.Path, "/") {
			directories = append(directories, []any{c.dirs[f.Path], msiDirKey(path.Dir(f.Path)), short[base] + "|" + base})
		}
		folders = append(folders, []any{c.dirs[f.Path], c.ofDir(f.Path)})
	}
	for i, p := range c.files {
		data := content[p.file.Path]
		name := path.Base(p.file.Path)
		files = append(files, []any{p.key, c.ofFile(p), short[name] + "|" + name, len(data), nil, nil, vital, i + 1})
		sum := md5.Sum(data)
		row := []any{p.key, 0}
		for n := 0; n < len(sum); n += 4 {
			row = append(row, int(int32(binary.LittleEndian.Uint32(sum[n:]))))
		}
		hashes = append(hashes, row)
	}
	t.add("Directory", "Directory s72 key, Directory_Parent S72, DefaultDir l255", directories...)
	t.add("CreateFolder", "Directory_ s72 key, Component_ s72 key", folders...)
	t.add("File", "File s72 key, Component_ s72, FileName l255, FileSize i4, Version S72, Language S20, Attributes I2, Sequence i4", files...)
	t.add("MsiFileHash", "File_ s72 key, Options i2, HashPart1 i4, HashPart2 i4, HashPart3 i4, HashPart4 i4", hashes...)
	t.add("Media", "DiskId i2 key, LastSequence i4, DiskPrompt L64, Cabinet S255, VolumeLabel S32, Source S72",
		[]any{1, len(c.files), nil, "#" + msiCabinet, nil, nil})
	// Home holds the agent's secret, and programs that run as SYSTEM. In session mode the daemon itself opens it to one user.
	var locks [][]any
	if _, ok := c.dirs[msiHome]; ok {
		locks = append(locks, []any{"Home", msiHomeDir, "CreateFolder", "O:BA" + windows.HomeSDDL, `ServiceMode="service"`})
	}
	t.add("MsiLockPermissionsEx", "MsiLockPermissionsEx s72 key, LockObject s72, Table s32, SDDLText s0, Condition S255", locks...)
}

// Numbers of the service tables.
const (
	serviceOwnProcess = 0x10
	serviceErrorVital = 0x8001 // an error is logged; when it cannot be registered, the installation fails

	controlStart           = 0x1 // when it is installed
	controlStop            = 0x2
	controlStopOnRemoval   = 0x20
	controlDeleteOnRemoval = 0x80

	configDelayed, configFailureFlag, configPreshutdown = 3, 4, 7 // winsvc.h
	configOnInstall                                     = 1
	actionRestart                                       = 1
)

// service fills the tables of the service. What a value of windows.Service says, they say.
func (t tables) service(m Manifest, c components) {
	s := msiService(m.Layout)
	var installs, controls, configs, failures [][]any
	var restarts, delays []string
	for _, pause := range s.Recovery {
		restarts = append(restarts, strconv.Itoa(actionRestart))
		delays = append(delays, strconv.Itoa(int(pause.Milliseconds())))
	}
	for component, how := range c.daemons() {
		key := "Service_" + how.name
		installs = append(installs, []any{key, s.Name, s.DisplayName, serviceOwnProcess, how.number, serviceErrorVital, nil,
			strings.Join(s.Dependencies, "[~]"), s.Account, nil, msiArguments(s), component, s.Description})
		controls = append(controls, []any{key, s.Name, controlStart | controlStop | controlStopOnRemoval | controlDeleteOnRemoval, nil, 1, component})
		failures = append(failures, []any{key, s.Name, configOnInstall, int(s.ResetAfter / time.Second), nil, nil,
			strings.Join(restarts, "[~]"), strings.Join(delays, "[~]"), component})
		if how.delayed {
			configs = append(configs, []any{key + ".delayed", s.Name, configOnInstall, configDelayed, "1", component})
		}
		configs = append(configs,
			[]any{key + ".failures", s.Name, configOnInstall, configFailureFlag, "1", component},
			[]any{key + ".preshutdown", s.Name, configOnInstall, configPreshutdown, strconv.Itoa(int(s.PreShutdown.Milliseconds())), component})
	}
	t.add("ServiceInstall", "ServiceInstall s72 key, Name s255, DisplayName L255, ServiceType i4, StartType i4, ErrorControl i4, LoadOrderGroup S255, "+
		"Dependencies S255, StartName S255, Password S255, Arguments S255, Component_ s72, Description L255", installs...)
	t.add("ServiceControl", "ServiceControl s72 key, Name l255, Event i2, Arguments L255, Wait I2, Component_ s72", controls...)
	t.add("MsiServiceConfig", "MsiServiceConfig s72 key, Name l255, Event i2, ConfigType i4, Argument S0, Component_ s72", configs...)
	t.add("MsiServiceConfigFailureActions", "MsiServiceConfigFailureActions s72 key, Name l255, Event i2, ResetPeriod I4, RebootMessage L255, Command L255, "+
		"Actions S0, DelayActions S0, Component_ s72", failures...)
}

// msiArguments are the service's, its mode being that of the service that is upgraded.
func msiArguments(s windows.Service) string {
	args := slices.Clone(s.Args)
	args[0] = "[ServiceMode]"
	for i, arg := range args {
		if strings.Contains(arg, "Folder]") {
			args[i] = `"` + arg + `"`
		}
	}
	return strings.Join(args, " ")
}

// registry fills the tables of the registry and of the environment.
func (t tables) registry(m Manifest, c components, place int) {
	s := msiService(m.Layout)
	var registry, locators, searches [][]any
	answers := "Answers"
	for _, a := range msiAnswers() {
		registry = append(registry, []any{a.value, rootMachine, windows.AnswersKey, a.value, "[" + a.property + "]", answers})
		locators = append(locators, []any{a.value, rootMachine, windows.AnswersKey, a.value, locateRaw64})
		searches = append(searches, []any{"LAST_" + a.property, a.value})
	}
	registry = append(registry,
		[]any{"Place", rootMachine, windows.AnswersKey, "Place", strconv.Itoa(place), answers},
		[]any{"Version", rootMachine, windows.AnswersKey, "Version", m.Version, answers})
	locate := func(property, signature, key, value string) {
		locators = append(locators, []any{signature, rootMachine, key, value, locateRaw64})
		searches = append(searches, []any{property, signature})
	}
	locate("SAME_PLACE", "Place", windows.AnswersKey, "Place")
	locate("SERVICE_START", "ServiceStart", servicesAt+s.Name, "Start")
	locate("SERVICE_MODE", "ServiceMode", windows.NotesKey(s.Name), windows.ModeValue)
	locate("SERVICE_STOPPED", "ServiceStopped", windows.NotesKey(s.Name), windows.StoppedValue)
	registry = append(registry, []any{"Mode", rootMachine, windows.NotesKey(s.Name), windows.ModeValue, "[ServiceMode]", "ImagePath"})
	registry = append(registry, []any{"Stopped", rootMachine, windows.NotesKey(s.Name), windows.StoppedValue, "#1", "Stopped"})
	for _, v := range s.Registry() { // those that no other table can say: the event source, and the quotes
		if component, ok := msiRegistered(c, v); ok {
			registry = append(registry, []any{"Service_" + v.Name, rootMachine, v.Key, v.Name, msiValue(v, s), component})
		}
	}
	t.add("Registry", "Registry s72 key, Root i2, Key l255, Name L255, Value L0, Component_ s72", registry...)
	t.add("RegLocator", "Signature_ s72 key, Root i2, Key s255, Name S255, Type I2", locators...)
	t.add("AppSearch", "Property s72 key, Signature_ s72 key", searches...)
	t.add("Environment", "Environment s72 key, Name l255, Value L255, Component_ s72",
		[]any{"Path", "=-*PATH", "[~];" + msiVendorPath, answers}) // set at installation, removed at removal, of the machine
}

// msiRegistered says which component writes a value of the service's registration, if none of the service tables does.
func msiRegistered(c components, v windows.Value) (string, bool) {
	switch v.Name {
	case "CustomSource", "EventMessageFile", "TypesSupported":
		return "Events", true
	case "ImagePath": // Windows Installer leaves the quotes to the system, and not every system sets them
		return "ImagePath", true
	}
	return "", false
}

// msiValue is a value of the registry as the Registry table writes it.
func msiValue(v windows.Value, s windows.Service) string {
	switch data := v.Data.(type) {
	case uint32:
		return "#" + strconv.Itoa(int(data))
	case string:
		if v.Name == "ImagePath" {
			data = `"` + s.Program + `" ` + msiArguments(s)
		}
		if v.Type == "REG_EXPAND_SZ" {
			return "#%" + data
		}
		return data
	}
	return fmt.Sprint(v.Data)
}

// launch says what an installation needs, in words for whoever reads the log. Each holds for removal as well.
func (t tables) launch(place int) error {
	needs := [][]any{
		{`Installed OR VersionNT64 >= 603`, "devops-agent needs 64-bit Windows 10, Windows Server 2016, or later."},
		{`Installed OR Privileged`, "devops-agent is installed for all users: start the installer as an administrator."},
		{`Installed OR NOT NEWER`, "A newer version of devops-agent is installed. To go back, remove it first; home and its configuration stay."},
		{`Installed OR NOT SAME OR NOT SAME_PLACE OR SAME_PLACE <= ` + strconv.Itoa(place),
			"A newer build of this version of devops-agent is installed. To go back, remove it first; home and its configuration stay."},
		{`NOT TOKEN`, "TOKEN on a command line could be read by others: write the token into a file that only administrators can read, and give its name as TOKEN_FILE."},
		{`NOT TOKEN_FILE OR TOKEN_FILE >< ":\" OR TOKEN_FILE << "\\"`, `TOKEN_FILE must be a whole path, such as C:\secrets\token.`},
		{`NOT START OR START="0" OR START="1"`, "START is 1, to start the service, or 0."},
	}
	for _, row := range needs {
		if text, _ := row[1].(string); len(text) > 255 {
			return fmt.Errorf("text of a condition has %d bytes", len(text))
		}
	}
	t.add("LaunchCondition", "Condition s255 key, Description l255", needs...)
	return nil
}

// components fills the table of the components, when all that use them are known.
func (t tables) components(m Manifest, c components) {
	own := func(name, dir string, attributes int, condition, keyPath any) []any {
		return []any{name, guid("component", name), dir, component64 | attributes, condition, keyPath}
	}
	const byRegistry = 4
	rows := [][]any{
		own("Answers", msiVendorDir, byRegistry, nil, "Version"),
		own("Events", msiVendorDir, byRegistry, nil, "Service_EventMessageFile"),
		own("ImagePath", msiVendorDir, byRegistry, nil, "Service_ImagePath"),
		own("Stopped", msiVendorDir, byRegistry, msiNoteIf, "Stopped"),
	}
	for _, p := range c.files {
		var condition any
		if p.condition != "" {
			condition = p.condition
		}
		rows = append(rows, own(c.ofFile(p), msiDirKey(path.Dir(p.file.Path)), 0, condition, p.key))
	}
	for dir, key := range c.dirs {
		attributes := 0
		if strings.HasPrefix(dir, msiHome) {
			attributes = componentPermanent
		}
		rows = append(rows, own(c.ofDir(dir), key, attributes, nil, nil))
	}
	slices.SortFunc(rows, func(a, b []any) int { return cmp.Compare(fmt.Sprint(a[0]), fmt.Sprint(b[0])) })
	var uses [][]any
	for _, row := range rows {
		uses = append(uses, []any{"Agent", row[0]})
	}
	t.add("Component", "Component s72 key, ComponentId S38, Directory_ s72, Attributes i2, Condition S255, KeyPath S72", rows...)
	const noAdvertising = 8
	t.add("Feature", "Feature s38 key, Feature_Parent S38, Title L64, Description L255, Display I2, Level i2, Directory_ S72, Attributes i2",
		[]any{"Agent", nil, m.Name, m.Summary, 0, 1, msiVendorDir, noAdvertising})
	t.add("FeatureComponents", "Feature_ s38 key, Component_ s72 key", uses...)
}

// actions fills the sequences. The only actions beside those of Windows Installer itself set a property: none runs a program,
// a library or a script.
func (t tables) actions() {
	const setProperty = 51
	var custom, remember [][]any
	at := 60
	set := func(name, property, value, condition string) {
		custom = append(custom, []any{name, setProperty, property, value, nil})
		remember = append(remember, []any{name, condition, at})
		at++
	}
	for _, a := range msiAnswers() {
		set("Remember"+a.value, a.property, "[LAST_"+a.property+"]", "NOT "+a.property+" AND LAST_"+a.property)
	}
	set("RememberMode", "ServiceMode", "session", `SERVICE_MODE="session"`)
	t.add("CustomAction", "Action s72 key, Type i2, Source S72, Target S255, ExtendedType I4", custom...)

	both := append([][]any{
		{"FindRelatedProducts", "NOT Installed", 25}, {"AppSearch", nil, 50}, {"LaunchConditions", nil, 100}, {"ValidateProductID", nil, 700},
		{"CostInitialize", nil, 800}, {"FileCost", nil, 900}, {"CostFinalize", nil, 1000},
	}, remember...)
	execute := append(slices.Clone(both), [][]any{
		{"MigrateFeatureStates", nil, 1200}, {"InstallValidate", nil, 1400}, {"InstallInitialize", nil, 1500},
		// Inside of the transaction: when the rest fails, the old version comes back.
		{"RemoveExistingProducts", nil, 1501},
		{"ProcessComponents", nil, 1600}, {"UnpublishFeatures", nil, 1800}, {"StopServices", nil, 1900}, {"DeleteServices", nil, 2000},
		{"RemoveRegistryValues", nil, 2600}, {"RemoveEnvironmentStrings", nil, 3300}, {"RemoveFiles", nil, 3500}, {"RemoveFolders", nil, 3600},
		{"CreateFolders", nil, 3700}, {"InstallFiles", nil, 4000}, {"WriteEnvironmentStrings", nil, 5200}, {"InstallServices", nil, 5800},
		{"MsiConfigureServices", `VersionMsi >= "5.00"`, 5850},
		{"WriteRegistryValues", nil, 5860}, // after the service is there, whose command line it quotes
		{"StartServices", msiStartIf, 5900},
		{"RegisterUser", nil, 6000}, {"RegisterProduct", nil, 6100}, {"PublishFeatures", nil, 6300}, {"PublishProduct", nil, 6400},
		{"InstallFinalize", nil, 6600},
	}...)
	const columns = "Action s72 key, Condition S255, Sequence I2"
	t.add("InstallExecuteSequence", columns, execute...)
	t.add("InstallUISequence", columns, append(slices.Clone(both), []any{"ExecuteAction", nil, 1300})...)
	t.add("AdminExecuteSequence", columns, [][]any{{"CostInitialize", nil, 800}, {"FileCost", nil, 900}, {"CostFinalize", nil, 1000},
		{"InstallValidate", nil, 1400}, {"InstallInitialize", nil, 1500}, {"InstallAdminPackage", nil, 3900}, {"InstallFiles", nil, 4000},
		{"InstallFinalize", nil, 6600}}...)
	t.add("AdminUISequence", columns, [][]any{{"CostInitialize", nil, 800}, {"FileCost", nil, 900}, {"CostFinalize", nil, 1000}, {"ExecuteAction", nil, 1300}}...)
}
