package unpack

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// JDK says where in an unpacked archive the JDK for a system is: dir itself, as BK-CI packs it (protocol §4.5), or the
// only directory in it, as everybody else does. Files beside that directory do not matter, nor do hidden directories
// and the one that macOS adds to a zip.
func JDK(dir, goos string) (root string, err error) {
	top, err := os.OpenRoot(dir)
	if err != nil {
		return "", fmt.Errorf("look for a JDK: %w", err)
	}
	defer top.Close()
	if hasJava(top, ".", goos) {
		return dir, nil
	}
	entries, err := fs.ReadDir(top.FS(), ".")
	if err != nil {
		return "", fmt.Errorf("look for a JDK: %w", err)
	}
	var only []string
	for _, entry := range entries {
		if entry.IsDir() && !strings.HasPrefix(entry.Name(), ".") && entry.Name() != "__MACOSX" {
			only = append(only, entry.Name())
		}
	}
	if len(only) == 1 && hasJava(top, only[0], goos) {
		return filepath.Join(dir, only[0]), nil
	}
	return "", &hinted{
		fmt.Errorf("look for a JDK: there is no %s in %s, nor in the only directory there", filepath.ToSlash(Java("", goos)), dir),
		"take an archive of a JDK for this operating system (" + goos + ")",
	}
}

// hasJava follows links, but none that lead out of top.
func hasJava(top *os.Root, below, goos string) bool {
	info, err := top.Stat(filepath.Join(below, Java("", goos)))
	return err == nil && info.Mode().IsRegular()
}

// Java is the path of the program java of the JDK at root (protocol §4.5).
func Java(root, goos string) string {
	switch goos {
	case "windows":
		return filepath.Join(root, "bin", "java.exe")
	case "darwin":
		return filepath.Join(root, "Contents", "Home", "bin", "java")
	}
	return filepath.Join(root, "bin", "java")
}

// Executable makes the programs of the JDK at root executable for whoever may read them: there are archives whose modes say that
// nothing in them is, and the original makes everything so. Other files, and links, stay as they are.
func Executable(root, goos string) error {
	if goos == "windows" {
		return nil
	}
	top, err := os.OpenRoot(root)
	if err != nil {
		return fmt.Errorf("make the programs of a JDK executable: %w", err)
	}
	defer top.Close()
	home := filepath.ToSlash(filepath.Dir(filepath.Dir(Java("", goos))))
	for _, below := range []string{home, path.Join(home, "jre")} {
		for _, pattern := range []string{"bin/*", "lib/jexec", "lib/jspawnhelper", "lib/*/jspawnhelper"} {
			names, err := fs.Glob(top.FS(), path.Join(below, pattern))
			if err != nil {
				return fmt.Errorf("make the programs of a JDK executable: %w", err)
			}
			for _, name := range names {
				if err := executable(top, name); err != nil {
					return fmt.Errorf("make the programs of a JDK executable: %w", err)
				}
			}
		}
	}
	return nil
}

func executable(top *os.Root, name string) error {
	info, err := top.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	mode := info.Mode().Perm()
	if more := mode | mode&0o444>>2; more != mode {
		return top.Chmod(name, more)
	}
	return nil
}
