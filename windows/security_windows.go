package windows

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"unsafe"

	win "golang.org/x/sys/windows"
)

// Protect gives a directory, and what inherits from it, the access control list of sddl, and Administrators as owner.
func Protect(path, sddl string) error {
	return set(path, sddl, win.PROTECTED_DACL_SECURITY_INFORMATION)
}

// Reclaim gives what is in a directory and belongs to somebody else, or can be changed by somebody else, to Administrators, so
// that it cannot: files keep their own owner and rights when the directory above them is closed. skip names entries of
// the directory that are left as they are. Links are not followed.
func Reclaim(dir string, skip ...string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("reclaim: %w", err)
		}
		if path == dir || !entry.IsDir() && !entry.Type().IsRegular() {
			return nil
		}
		if filepath.Dir(path) == dir && slices.Contains(skip, entry.Name()) {
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		s, err := SecurityOf(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a build's, and gone
		}
		if err != nil || len(s.Strangers()) == 0 {
			return err
		}
		sddl := reclaimedFile
		if entry.IsDir() {
			sddl = reclaimedDir
		}
		return set(path, sddl, win.UNPROTECTED_DACL_SECURITY_INFORMATION) // it inherits from above, too
	})
}

// The lists of what is reclaimed.
const (
	reclaimedFile = "D:AI(A;;FA;;;SY)(A;;FA;;;BA)"
	reclaimedDir  = "D:AI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
)

func set(path, sddl string, inheritance win.SECURITY_INFORMATION) error {
	descriptor, err := win.SecurityDescriptorFromString("O:BA" + sddl)
	if err != nil {
		return fmt.Errorf("protect %s: %w", path, err)
	}
	owner, _, err := descriptor.Owner()
	if err != nil {
		return fmt.Errorf("protect %s: %w", path, err)
	}
	dacl, _, err := descriptor.DACL()
	if err != nil {
		return fmt.Errorf("protect %s: %w", path, err)
	}
	what := win.DACL_SECURITY_INFORMATION | inheritance
	err = win.SetNamedSecurityInfo(path, win.SE_FILE_OBJECT, what|win.OWNER_SECURITY_INFORMATION, owner, nil, dacl, nil)
	if errors.Is(err, win.ERROR_INVALID_OWNER) { // without the right to give files away
		err = win.SetNamedSecurityInfo(path, win.SE_FILE_OBJECT, what, nil, nil, dacl, nil)
	}
	if err != nil {
		return fmt.Errorf("protect %s: %w", path, err)
	}
	return nil
}

// SecurityOf asks whom a file or directory belongs to and who may do what with it.
func SecurityOf(path string) (Security, error) {
	descriptor, err := win.GetNamedSecurityInfo(path, win.SE_FILE_OBJECT, win.OWNER_SECURITY_INFORMATION|win.DACL_SECURITY_INFORMATION)
	if err != nil {
		return Security{}, fmt.Errorf("ask who may change %s: %w", path, err)
	}
	s, err := ParseSecurity(bytesOf(descriptor))
	if err != nil {
		return Security{}, fmt.Errorf("ask who may change %s: %w", path, err)
	}
	return s, nil
}

// bytesOf is a self-relative descriptor as it is in memory.
func bytesOf(d *win.SECURITY_DESCRIPTOR) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(d)), d.Length())
}

// CheckPrograms looks whether somebody who is no administrator can change what is run from a directory: the directory, the
// files named, which need not be there, or, by putting another one into its place, a directory above. The error is an
// ExposedError.
func CheckPrograms(home string, files ...string) error {
	for _, path := range append([]string{home}, files...) {
		s, err := SecurityOf(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if who := s.Strangers(); len(who) > 0 {
			return &ExposedError{Path: path, Who: who, Home: home}
		}
	}
	for dir := filepath.Dir(home); ; dir = filepath.Dir(dir) {
		s, err := SecurityOf(dir)
		if err != nil {
			return err
		}
		if who := s.Movers(); len(who) > 0 {
			return &ExposedError{Path: dir, Who: who, Home: home}
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// Privileged reports whether this process has the rights of SYSTEM or of an administrator, and has not laid them down.
func Privileged() bool {
	administrators, err := win.CreateWellKnownSid(win.WinBuiltinAdministratorsSid)
	if err != nil {
		return false
	}
	is, err := win.Token(0).IsMember(administrators)
	return err == nil && is
}
