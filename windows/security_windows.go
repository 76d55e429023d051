package windows

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	win "golang.org/x/sys/windows"
)

// Protect gives a directory, and what inherits from it, the access control list of sddl, and Administrators as owner.
func Protect(path, sddl string) error {
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
	const what = win.DACL_SECURITY_INFORMATION | win.PROTECTED_DACL_SECURITY_INFORMATION
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
	s, err := ParseSecurity(unsafe.Slice((*byte)(unsafe.Pointer(descriptor)), descriptor.Length()))
	if err != nil {
		return Security{}, fmt.Errorf("ask who may change %s: %w", path, err)
	}
	return s, nil
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
