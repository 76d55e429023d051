package windows

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	win "golang.org/x/sys/windows"
)

// TestSDDLIsUnderstood: Windows reads our lists as we mean them.
func TestSDDLIsUnderstood(t *testing.T) {
	for sddl, want := range map[string]int{
		HomeSDDL: 0, reclaimedFile: 0, reclaimedDir: 0, SessionSDDL("S-1-5-21-1-2-3-1001"): 1,
	} {
		d, err := win.SecurityDescriptorFromString("O:BA" + sddl)
		if err != nil {
			t.Errorf("%s: %v", sddl, err)
			continue
		}
		control, _, err := d.Control()
		if protected := control&win.SE_DACL_PROTECTED != 0; err != nil || protected != strings.HasPrefix(sddl, "D:P") {
			t.Errorf("%s: control %#x, %v", sddl, control, err)
		}
		s, err := ParseSecurity(bytesOf(d))
		if err != nil || s.NoDACL || s.Owner != sidAdministrators || len(s.Strangers()) != want || len(s.DACL) != 2+want {
			t.Errorf("%s: %+v, %v", sddl, s, err)
		}
	}
}

// TestReclaim: what others could change is closed, at any depth, and only that; what is named is left alone.
func TestReclaim(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"program.exe", "deep/er/program.exe", "workspace/program.exe"} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := set(path, "D:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;WD)", win.PROTECTED_DACL_SECURITY_INFORMATION); err != nil {
			t.Fatal(err)
		}
		var exposed *ExposedError
		if err := CheckPrograms(dir, path); !errors.As(err, &exposed) || exposed.Path != path {
			t.Errorf("%s can be changed by everyone: %v", name, err)
		}
	}
	if err := Protect(dir, HomeSDDL); err != nil {
		t.Fatal(err)
	}
	if err := Reclaim(dir, "workspace"); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]bool{"program.exe": false, "deep/er/program.exe": false, "workspace/program.exe": true, "nothing.exe": false} {
		s, err := SecurityOf(filepath.Join(dir, filepath.FromSlash(name)))
		if errors.Is(err, os.ErrNotExist) && name == "nothing.exe" {
			continue
		}
		if err != nil || (len(s.Strangers()) > 0) != open {
			t.Errorf("%s: %v, %v", name, s.Strangers(), err)
		}
	}
}
