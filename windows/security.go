package windows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// HomeSDDL is the protection of an agent's home: SYSTEM and Administrators may do everything, which what is made in it
// inherits, and nobody else may do anything; nothing is inherited from above. Home holds the agent's secret, and programs
// that SYSTEM runs.
const HomeSDDL = "D:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"

// SessionSDDL is the protection of the home of an agent that runs as the user who is logged on: beside SYSTEM and
// Administrators, that user may change it; nobody else may do anything. user is a SID as "S-1-5-21-…".
func SessionSDDL(user string) string { return HomeSDDL + "(A;OICI;0x1301bf;;;" + user + ")" }

// Rights of an access mask that let somebody change what a directory holds, or what a program is (winnt.h). FILE_WRITE_DATA
// of a directory is the right to make files, FILE_APPEND_DATA to make directories.
const (
	rightWriteData    = 0x2
	rightAppendData   = 0x4
	rightDeleteChild  = 0x40
	rightDelete       = 0x10000
	rightWriteDAC     = 0x40000
	rightWriteOwner   = 0x80000
	rightGenericAll   = 0x10000000
	rightGenericWrite = 0x40000000

	// Extended attributes, and attributes like "hidden", change no program.
	rightsToChange = rightWriteData | rightAppendData | rightDeleteChild | rightDelete | rightWriteDAC | rightWriteOwner |
		rightGenericAll | rightGenericWrite

	rightsToMove = rightDeleteChild | rightDelete | rightWriteDAC | rightWriteOwner | rightGenericAll
)

// Types and flags of access control entries (winnt.h).
const (
	aceAllowed         = 0
	aceDenied          = 1
	aceAllowedCallback = 9

	aceObjectInherit    = 0x1
	aceContainerInherit = 0x2
	aceInheritOnly      = 0x8
)

// ACE is one entry of an access control list.
type ACE struct {
	Type  byte
	Flags byte
	Mask  uint32
	SID   string // "" for a type that is not known
}

// Security says whom a file belongs to and who may do what with it.
type Security struct {
	Owner  string // SID
	NoDACL bool   // everybody may do everything
	DACL   []ACE
}

// SIDs that mean the same on every machine.
const (
	sidSystem           = "S-1-5-18"
	sidAdministrators   = "S-1-5-32-544"
	sidTrustedInstaller = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"
	sidWine             = "S-1-5-21-0-0-0-1000" // Wine's only account, SYSTEM too; no machine of Windows has this number
	sidCreatorOwner     = "S-1-3-0"
	sidOwnerRights      = "S-1-3-4"
)

// names are for people, who know accounts by names.
func nameOf(sid string) string {
	switch sid {
	case "S-1-1-0":
		return "Everyone"
	case "S-1-5-11":
		return "Authenticated Users"
	case "S-1-5-32-545":
		return "Users"
	case "S-1-5-4":
		return "INTERACTIVE"
	case "S-1-5-32-547":
		return "Power Users"
	case "S-1-5-7":
		return "ANONYMOUS LOGON"
	case "S-1-5-32-546":
		return "Guests"
	}
	return sid
}

// Strangers names who can change the file or directory: everybody beside SYSTEM, Administrators, TrustedInstaller and the
// accounts given (SIDs). Nobody means that it is safe to run programs from it as SYSTEM.
//
// A denial takes nobody off the list: it counts only for those whom it names and only before the permission, and an ACL
// that needs it is not one that this program made.
func (s Security) Strangers(trusted ...string) []string { return s.who(rightsToChange, true, trusted) }

// Movers names who can put another directory into the place of this one, or of one in it: for the directories above home,
// in which others may well make files.
func (s Security) Movers() []string { return s.who(rightsToMove, false, nil) }

// who names those who have one of the rights. inherited counts rights that only what is made in it gets, and the owner's.
func (s Security) who(rights uint32, inherited bool, trusted []string) []string {
	if s.NoDACL {
		return []string{"Everyone"}
	}
	is := map[string]bool{sidSystem: true, sidAdministrators: true, sidTrustedInstaller: true, sidWine: true}
	for _, sid := range trusted {
		is[sid] = true
	}
	var found []string
	named := map[string]bool{}
	add := func(sid string) {
		if !is[sid] && !named[sid] {
			named[sid] = true
			found = append(found, nameOf(sid))
		}
	}
	if s.Owner != "" && inherited { // who owns a file may give himself every right
		add(s.Owner)
	}
	for _, a := range s.DACL {
		switch {
		case a.Type == aceDenied:
		case a.Mask&rights == 0:
		case a.Flags&aceInheritOnly != 0 && !inherited:
		case a.SID == sidCreatorOwner || a.SID == sidOwnerRights: // the owner, of this or of what is made in it
			if a.Flags&aceInheritOnly == 0 && s.Owner != "" && inherited {
				add(s.Owner)
			}
		case a.Flags&aceInheritOnly != 0 && a.Flags&(aceObjectInherit|aceContainerInherit) == 0: // for nobody
		case a.SID == "":
			add(fmt.Sprintf("an entry of unknown type %d", a.Type))
		default:
			add(a.SID) // also when only what is made in it inherits the right
		}
	}
	return found
}

// errSecurity: not a security descriptor.
var errSecurity = errors.New("not a security descriptor")

// Bits of the control word of a security descriptor.
const (
	controlDACL         = 0x4
	controlSelfRelative = 0x8000
)

// ParseSecurity reads a self-relative security descriptor (MS-DTYP §2.4.6), as GetNamedSecurityInfo gives it.
func ParseSecurity(b []byte) (Security, error) {
	const head = 20
	if len(b) < head || b[0] != 1 {
		return Security{}, errSecurity
	}
	control := binary.LittleEndian.Uint16(b[2:])
	owner, dacl := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[16:])
	if control&controlSelfRelative == 0 {
		return Security{}, fmt.Errorf("%w: it has pointers", errSecurity)
	}
	var s Security
	if owner != 0 {
		if uint64(owner) >= uint64(len(b)) {
			return Security{}, fmt.Errorf("%w: owner is outside", errSecurity)
		}
		sid, ok := parseSID(b[owner:])
		if !ok {
			return Security{}, fmt.Errorf("%w: bad owner", errSecurity)
		}
		s.Owner = sid
	}
	if control&controlDACL == 0 || dacl == 0 {
		s.NoDACL = true
		return s, nil
	}
	if uint64(dacl)+8 > uint64(len(b)) {
		return Security{}, fmt.Errorf("%w: list is outside", errSecurity)
	}
	var err error
	s.DACL, err = parseACL(b[dacl:])
	return s, err
}

// parseACL reads a list (MS-DTYP §2.4.5).
func parseACL(b []byte) ([]ACE, error) {
	size, count := int(binary.LittleEndian.Uint16(b[2:])), int(binary.LittleEndian.Uint16(b[4:]))
	if size < 8 || size > len(b) {
		return nil, fmt.Errorf("%w: list of %d bytes in %d", errSecurity, size, len(b))
	}
	b = b[8:size]
	var list []ACE
	for range count {
		if len(b) < 8 {
			return nil, fmt.Errorf("%w: list is cut", errSecurity)
		}
		a := ACE{Type: b[0], Flags: b[1], Mask: binary.LittleEndian.Uint32(b[4:])}
		n := int(binary.LittleEndian.Uint16(b[2:]))
		if n < 8 || n > len(b) {
			return nil, fmt.Errorf("%w: entry of %d bytes in %d", errSecurity, n, len(b))
		}
		switch a.Type { // the others have something else in the place of the SID
		case aceAllowed, aceDenied, aceAllowedCallback:
			sid, ok := parseSID(b[8:n])
			if !ok {
				return nil, fmt.Errorf("%w: bad SID in an entry", errSecurity)
			}
			a.SID = sid
		}
		list, b = append(list, a), b[n:]
	}
	return list, nil
}

// parseSID reads a SID (MS-DTYP §2.4.2.2) and writes it as people do.
func parseSID(b []byte) (string, bool) {
	if len(b) < 8 || b[0] != 1 || b[1] > 15 || len(b) < 8+4*int(b[1]) {
		return "", false
	}
	authority := uint64(binary.BigEndian.Uint16(b[2:]))<<32 | uint64(binary.BigEndian.Uint32(b[4:]))
	var out strings.Builder
	out.WriteString("S-1-" + strconv.FormatUint(authority, 10))
	for i := range int(b[1]) {
		out.WriteString("-" + strconv.FormatUint(uint64(binary.LittleEndian.Uint32(b[8+4*i:])), 10))
	}
	return out.String(), true
}

// ExposedError: others can change what would run with the rights of the service.
type ExposedError struct {
	Path string
	Who  []string
	Home string // to be closed by the command of Hint
}

// Error names the path and who may write there.
func (e *ExposedError) Error() string {
	return fmt.Sprintf("%s can be changed by %s: refusing to run as SYSTEM from there", e.Path, strings.Join(e.Who, ", "))
}

// Hint is the command that closes what is open. A parent directory is the operator's: there it only takes away.
func (e *ExposedError) Hint() string {
	if e.Home != e.Path && strings.HasPrefix(e.Home, strings.TrimSuffix(e.Path, `\`)+`\`) {
		return "install the agent below " + `C:\ProgramData` + ", or keep others from changing the directory, as an administrator: " +
			closing(e.Path, ":(OI)(CI)F", " *S-1-5-32-545:(OI)(CI)RX")
	}
	return "as an administrator: icacls " + quote(e.Home) + " /setowner *" + sidAdministrators + " /t & icacls " + quote(e.Home) + " /reset /t & " +
		closing(e.Home, ":(OI)(CI)F", "") + "; but first make sure that nobody has put another program there"
}

func closing(dir, full, more string) string {
	return "icacls " + quote(dir) + " /inheritance:r /grant:r *" + sidSystem + full + " *" + sidAdministrators + full + more
}
