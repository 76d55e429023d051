package windows

import (
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// pack writes a self-relative security descriptor.
func pack(owner string, dacl []ACE) []byte {
	b := []byte{1, 0, 0, 0x80, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = append(b, packSID(owner)...)
	if dacl == nil {
		return b
	}
	b[2] |= controlDACL
	binary.LittleEndian.PutUint32(b[16:], uint32(len(b)))
	var list []byte
	for _, a := range dacl {
		sid := packSID(a.SID)
		entry := []byte{a.Type, a.Flags, byte(8 + len(sid)), 0}
		entry = binary.LittleEndian.AppendUint32(entry, a.Mask)
		list = append(append(list, entry...), sid...)
	}
	head := []byte{2, 0}
	head = binary.LittleEndian.AppendUint16(head, uint16(8+len(list)))
	head = binary.LittleEndian.AppendUint16(head, uint16(len(dacl)))
	return append(append(b, append(head, 0, 0)...), list...)
}

func packSID(sid string) []byte {
	parts := strings.Split(sid, "-")[2:]
	b := []byte{1, byte(len(parts) - 1), 0, 0, 0, 0, 0, 0}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 48)
		if err != nil {
			panic(err)
		}
		if i == 0 {
			b[7] = byte(n)
			continue
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return b
}

// Entries as Windows has them.
const (
	full        = 0x1f01ff
	modify      = 0x1301bf
	readExecute = 0x1200a9
	bob         = "S-1-5-21-1-2-3-1001"
	users       = "S-1-5-32-545"
	authUsers   = "S-1-5-11"
	everyone    = "S-1-1-0"
)

func allow(sid string, mask uint32, flags byte) ACE { return ACE{aceAllowed, flags, mask, sid} }

func TestStrangers(t *testing.T) {
	const inherit = aceObjectInherit | aceContainerInherit
	system, admins := allow(sidSystem, full, inherit), allow(sidAdministrators, full, inherit)
	for name, c := range map[string]struct {
		owner            string
		dacl             []ACE
		strangers, moves []string
	}{
		"what install makes":        {sidAdministrators, []ACE{system, admins}, nil, nil},
		"users may read":            {sidSystem, []ACE{system, admins, allow(users, readExecute, inherit)}, nil, nil},
		"Program Files":             {sidTrustedInstaller, []ACE{allow(sidTrustedInstaller, full, 0), system, allow(sidCreatorOwner, 0x10000000, inherit|aceInheritOnly)}, nil, nil},
		"inherited from a drive":    {sidAdministrators, []ACE{system, admins, allow(authUsers, modify, inherit|0x10)}, []string{"Authenticated Users"}, []string{"Authenticated Users"}},
		"users may make files":      {sidSystem, []ACE{system, allow(users, 0x2, 0)}, []string{"Users"}, nil},
		"ProgramData":               {sidSystem, []ACE{system, admins, allow(users, 0x116, aceContainerInherit)}, []string{"Users"}, nil},
		"root of a drive":           {sidTrustedInstaller, []ACE{system, admins, allow(authUsers, 0x4, 0), allow(authUsers, 0xe0010000, inherit|aceInheritOnly)}, []string{"Authenticated Users"}, nil},
		"only what is made in it":   {sidSystem, []ACE{system, allow(bob, full, inherit|aceInheritOnly)}, []string{bob}, nil},
		"belongs to somebody":       {bob, []ACE{system, admins}, []string{bob}, nil},
		"creator of it may write":   {bob, []ACE{system, allow(sidCreatorOwner, full, 0)}, []string{bob}, nil},
		"may write the permissions": {sidSystem, []ACE{system, allow(bob, rightWriteDAC, 0)}, []string{bob}, []string{bob}},
		"may delete what is in it":  {sidSystem, []ACE{system, allow(users, rightDeleteChild, 0)}, []string{"Users"}, []string{"Users"}},
		"generic write":             {sidSystem, []ACE{system, allow(everyone, rightGenericWrite, 0)}, []string{"Everyone"}, nil},
		"a denial is no protection": {sidSystem, []ACE{{aceDenied, 0, full, users}, system, allow(users, modify, 0)}, []string{"Users"}, []string{"Users"}},
		"conditional":               {sidSystem, []ACE{system, {aceAllowedCallback, 0, modify, users}}, []string{"Users"}, []string{"Users"}},
		"named once":                {sidSystem, []ACE{allow(bob, full, 0), allow(bob, modify, inherit)}, []string{bob}, []string{bob}},
		"nobody may do anything":    {sidSystem, []ACE{}, nil, nil},
		"everybody may":             {sidSystem, nil, []string{"Everyone"}, []string{"Everyone"}},
	} {
		s, err := ParseSecurity(pack(c.owner, c.dacl))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := s.Strangers(); !slices.Equal(got, c.strangers) {
			t.Errorf("%s: strangers %q, want %q", name, got, c.strangers)
		}
		if got := s.Movers(); !slices.Equal(got, c.moves) {
			t.Errorf("%s: movers %q, want %q", name, got, c.moves)
		}
	}
	s, err := ParseSecurity(pack(sidAdministrators, []ACE{system, allow(bob, modify, 0)}))
	if got := s.Strangers(bob); err != nil || len(got) != 0 {
		t.Errorf("trusted, and yet named: %q, %v", got, err)
	}
}

func TestUnknownEntriesAreStrangers(t *testing.T) {
	b := pack(sidSystem, []ACE{allow(bob, full, 0)})
	at := binary.LittleEndian.Uint32(b[16:]) + 8
	b[at] = 5 // an object entry: the SID is elsewhere
	s, err := ParseSecurity(b)
	if who := s.Strangers(); err != nil || len(who) != 1 || !strings.Contains(who[0], "type 5") {
		t.Errorf("%q, %v", who, err)
	}
}

func TestWhatIsNoDescriptorIsRefused(t *testing.T) {
	whole := pack(sidSystem, []ACE{allow(bob, full, 0), allow(users, modify, 0)})
	for n := range len(whole) {
		if _, err := ParseSecurity(whole[:n]); n >= 20 && err == nil || err != nil && !errors.Is(err, errSecurity) {
			t.Errorf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
	pointers := slices.Clone(whole)
	pointers[3] = 0
	if _, err := ParseSecurity(pointers); err == nil {
		t.Error("one with pointers was accepted")
	}
}

func FuzzParseSecurity(f *testing.F) {
	f.Add(pack(sidSystem, []ACE{allow(bob, full, 0), allow(users, modify, 3)}))
	f.Add(pack(bob, nil))
	f.Add([]byte{1, 0, 4, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSecurity(b)
		if err != nil && !errors.Is(err, errSecurity) {
			t.Errorf("an error of another kind: %v", err)
		}
		if err == nil && s.NoDACL && len(s.Strangers()) == 0 {
			t.Error("no list, and yet nobody may")
		}
		_, _ = s.Strangers(), s.Movers()
	})
}

// TestHintClosesTheDirectory: home itself is closed whole; a directory above is not ours to reset.
func TestHintClosesTheDirectory(t *testing.T) {
	home := (&ExposedError{Path: `C:\a b\devopsAgent.exe`, Who: []string{"Users"}, Home: `C:\a b`}).Hint()
	if !strings.Contains(home, `icacls "C:\a b" /reset /t & icacls "C:\a b" /inheritance:r /grant:r *S-1-5-18:(OI)(CI)F *S-1-5-32-544:(OI)(CI)F`) {
		t.Error(home)
	}
	above := (&ExposedError{Path: `D:\`, Who: []string{"Users"}, Home: `D:\agent`}).Hint()
	if strings.Contains(above, "/reset") || !strings.Contains(above, `icacls D:\ /inheritance:r`) {
		t.Error(above)
	}
}
