package unpack

import (
	"fmt"
	"io/fs"
	"os"
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
