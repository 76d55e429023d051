package packaging

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/packaging/internal/cab"
	"github.com/devops-agent/devops-agent/packaging/internal/cfb"
	"github.com/devops-agent/devops-agent/packaging/internal/msi"
	"github.com/devops-agent/devops-agent/service"
	"github.com/devops-agent/devops-agent/windows"
)

// The roots of the paths of a Windows package.
const (
	msiVendor = "VENDOR" // C:\Program Files\devops-agent
	msiHome   = "HOME"   // C:\ProgramData\devops-agent
)

// What never changes about the product, for Windows to know it again.
const (
	msiUpgradeCode = "{6B1D4F0E-5B9B-4C8C-9B57-2C5E3C1E7D10}"
	msiDaemon      = msiVendor + "/devopsDaemon.exe" // the program of the service
	msiDrain       = 10 * time.Minute                // drain.timeout where agent.toml does not say otherwise
)

// msiClass is the class of an installer database: {000C1084-0000-0000-C000-000000000046}.
func msiClass() [16]byte {
	return [16]byte{0x84, 0x10, 0x0c, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0x46}
}

// msiPlatform is an architecture in the words of Windows Installer.
func msiPlatform(goarch string) string {
	switch goarch {
	case "amd64":
		return "x64"
	case "arm64":
		return "Arm64"
	}
	return ""
}

func msiName(m Manifest) string {
	return m.Name + "-" + m.Version + "-" + strings.ToLower(msiPlatform(m.GOARCH)) + ".msi"
}

// msiPrograms are those that a Windows package has.
func msiPrograms() []string {
	return []string{"devopsAgent", "devopsDaemon", "devopsWorker", "upgrader"}
}

// Accounts that own what is installed: the installer itself, and who may change home.
const (
	msiOwner = "SYSTEM"
	msiAdmin = "Administrators"
)

// msiContents adds what a Windows package has to the manifest. agent.toml is not in it: what an installer has put somewhere it
// also takes away.
func msiContents(r Release, m *Manifest) error {
	add := func(f File) {
		f.Owner, f.Group = cmp.Or(f.Owner, msiOwner), msiOwner
		m.Files = append(m.Files, f)
	}
	add(File{Path: msiVendor, Kind: Dir, Mode: 0o755})
	for _, name := range msiPrograms() {
		add(File{Path: msiVendor + "/" + name + ".exe", Mode: 0o755, Source: r.program(name, "windows", m.GOARCH), Program: true})
	}
	add(File{Path: msiVendor + "/LICENSE.txt", Mode: 0o644, Source: filepath.Join(r.Root, "LICENSE")})
	add(File{Path: msiVendor + "/THIRD-PARTY.txt", Mode: 0o644, Data: []byte(thirdParty(r.Licences))})
	add(File{Path: msiVendor + "/agent.toml.example", Mode: 0o644, Source: filepath.Join(r.Root, "agent", "config", "testdata", "agent.toml")})
	add(File{Path: msiHome, Kind: Dir, Mode: 0o700, Owner: msiAdmin})
	add(File{Path: msiHome + "/enroll.d", Kind: Dir, Mode: 0o700, Owner: msiAdmin})
	return nil
}

// msiVersion is a version as Windows Installer compares it, three numbers, and the place of a pre-release among those of the
// same numbers, which grows as they do: the first letter of its word counts first (alpha, beta, dev, rc), then its number.
func msiVersion(text string) (core string, place int, err error) {
	v, err := parseVersion(text)
	if err != nil {
		return "", 0, err
	}
	for i, number := range strings.Split(v.core, ".") {
		if n, err := strconv.Atoi(number); err != nil || n > []int{255, 255, 65535}[i] {
			return "", 0, fmt.Errorf("version %s: Windows Installer takes at most 255.255.65535", v.core)
		}
	}
	const perLetter, release = 50_000_000, 2_000_000_000
	if v.pre == "" {
		return v.core, release, nil
	}
	if c := v.pre[0] | 0x20; c >= 'a' && c <= 'z' {
		place = int(c-'a'+1) * perLetter
	}
	last := v.pre[strings.LastIndexByte(v.pre, '.')+1:]
	if n, err := strconv.Atoi(last); err == nil {
		place += min(n, perLetter-1)
	}
	return v.core, place, nil
}

// guid derives an identity from what it is of: the same today and tomorrow, on any machine.
func guid(of ...string) string {
	h := sha256.New()
	for _, text := range append([]string{msiUpgradeCode}, of...) {
		_ = binary.Write(h, binary.BigEndian, uint32(len(text))) // a hash takes everything
		_, _ = io.WriteString(h, text)
	}
	b := h.Sum(nil)[:16]
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80 // RFC 9562, version 8
	text := strings.ToUpper(hex.EncodeToString(b))
	return "{" + text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:] + "}"
}

// writeMSI writes the package, signed where there is a key: first its programs, then the whole.
func writeMSI(ctx context.Context, m Manifest, o Options, w io.Writer) (err error) {
	if err := msiCheck(m); err != nil {
		return err
	}
	s, err := newSigner(o, m.Time)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	content := map[string][]byte{}
	for _, f := range m.Files {
		if f.Kind == Dir {
			continue
		}
		data, err := f.Read()
		if err == nil && f.Program {
			data, err = s.sign(ctx, path.Base(f.Path), data)
		}
		if err != nil {
			return err
		}
		content[f.Path] = data
	}
	data, err := msiBytes(m, content)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	if data, err = s.sign(ctx, msiName(m), data); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// msiCheck refuses what an installer would not keep as the manifest says.
func msiCheck(m Manifest) error {
	wrong := func(format string, args ...any) error {
		return &ManifestError{Package: m.Name, Reason: fmt.Sprintf(format, args...)}
	}
	if msiPlatform(m.GOARCH) == "" {
		return wrong("Windows has no architecture %q", m.GOARCH)
	}
	dirs, daemon := map[string]bool{}, false
	for _, f := range m.Files {
		root, _, below := strings.Cut(f.Path, "/")
		switch {
		case root != msiVendor && root != msiHome:
			return wrong("%s is neither below %s nor below %s", f.Path, msiVendor, msiHome)
		case below && !dirs[path.Dir(f.Path)]:
			return wrong("the directory of %s is not listed", f.Path)
		case f.Kind == Dir:
			dirs[f.Path] = true
		case f.Kind != Regular:
			return wrong("%s is a %v, which Windows Installer does not know", f.Path, f.Kind)
		case !below:
			return wrong("%s is no directory", f.Path)
		case root == msiHome:
			return wrong("%s: files in home would be taken away with the package", f.Path)
		case strings.ContainsAny(f.Path, `<>:"|?*[];`) || len(id(f.Path)) > 60:
			return wrong("file name %q", f.Path)
		}
		daemon = daemon || f.Path == msiDaemon && f.Program
	}
	if !daemon {
		return wrong("there is no program %s, which the service runs", msiDaemon)
	}
	if m.Layout.Name == "" {
		return wrong("its service has no name")
	}
	if !dirs[msiHome] {
		return wrong("there is no directory %s", msiHome)
	}
	if _, _, err := msiVersion(m.Version); err != nil {
		return wrong("%v", err)
	}
	return nil
}

// msiBytes is the package of a checked manifest with the contents of its files.
func msiBytes(m Manifest, content map[string][]byte) ([]byte, error) {
	d, err := msiDatabase(m, content)
	if err != nil {
		return nil, err
	}
	if bad := msiInspect(d, content); len(bad) > 0 {
		return nil, &ManifestError{Package: m.Name, Reason: bad[0].text}
	}
	var files []cab.File
	for _, p := range msiPacked(m) {
		files = append(files, cab.File{Name: p.key, Time: m.Time, Data: content[p.file.Path]})
	}
	var cabinet bytes.Buffer
	if err := cab.Write(&cabinet, files); err != nil {
		return nil, err
	}
	// The code of this file: another one for all other bytes.
	digest := sha256.New()
	draft, err := d.Streams()
	if err != nil {
		return nil, err
	}
	for _, s := range append(draft, msi.Stream{Name: msiCabinet, Data: cabinet.Bytes()}) {
		sum := sha256.Sum256(s.Data)
		_, _ = digest.Write(sum[:])
	}
	d.Summary.PackageCode = guid("package", hex.EncodeToString(digest.Sum(nil)))
	streams, err := d.Streams()
	if err != nil {
		return nil, err
	}
	list := []cfb.Stream{{Name: msi.StreamName(msiCabinet), Data: cabinet.Bytes()}}
	for _, s := range streams {
		list = append(list, cfb.Stream{Name: s.Name, Data: s.Data})
	}
	var out bytes.Buffer
	err = cfb.Write(&out, msiClass(), list)
	return out.Bytes(), err
}

// msiCabinet is the name of the cabinet in the file.
const msiCabinet = "agent.cab"

// packed is a file as the File table has it.
type packed struct {
	key       string // in the tables, and in the cabinet
	file      File
	start     string // of the service, for one of the copies of its program; "" else
	condition string
}

// msiPacked lists the files in the order of the cabinet. The program of the service is there once for every way to start it: which
// one is installed says how the service is registered, so that a service that somebody has disabled stays disabled. The
// bytes are there once.
func msiPacked(m Manifest) []packed {
	var list []packed
	for _, f := range m.Files {
		if f.Kind == Dir {
			continue
		}
		if f.Path != msiDaemon {
			list = append(list, packed{key: id(path.Base(f.Path)), file: f})
			continue
		}
		for _, s := range msiStarts() {
			list = append(list, packed{key: id(path.Base(f.Path)) + s.suffix, file: f, start: s.name, condition: s.condition})
		}
	}
	return list
}

// id makes a key of a file name.
func id(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r == '.' || r == '_' {
			return r
		}
		return '_'
	}, name)
}

// msiService is the service that the package registers: what "devopsAgent install" registers for the package's home. Home is
// written as Windows Installer fills it in, without a backslash at its end, which would escape the quote.
func msiService(l service.Layout) windows.Service {
	s := service.WindowsService(l.Name, service.Setup{Home: msiHomePath, Vendor: "[" + msiVendorDir + "]", Drain: msiDrain})
	s.Program = "[" + msiVendorDir + "]" + path.Base(msiDaemon) // the directory's name ends in a backslash
	return s
}

// The directories as formatted texts name them. Names with small letters cannot be set on a command line.
const (
	msiVendorDir  = "VendorDir"
	msiHomeDir    = "HomeDir"
	msiHomePath   = "[CommonAppDataFolder]devops-agent"
	msiVendorPath = "[ProgramFiles64Folder]devops-agent"
)

// shortNames gives every name of a directory one in 8.3, which Windows Installer wants.
func shortNames(names []string) map[string]string {
	short := map[string]string{}
	taken := map[string]bool{}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		ext := strings.ToUpper(strings.TrimPrefix(path.Ext(name), "."))
		base := strings.ToUpper(strings.TrimSuffix(name, path.Ext(name)))
		plain := func(s string) string { return strings.NewReplacer(".", "", "_", "", "-", "", " ", "").Replace(s) }
		base, ext = plain(base), plain(ext)
		for n := 1; ; n++ {
			tail := "~" + strconv.Itoa(n)
			try := base[:min(len(base), 8-len(tail))] + tail
			if ext != "" {
				try += "." + ext[:min(len(ext), 3)]
			}
			if !taken[try] {
				short[name], taken[try] = try, true
				break
			}
		}
	}
	return short
}
