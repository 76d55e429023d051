package packaging

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// SumsName is the file that lists a directory of a release; sha256sum -c reads it.
const SumsName = "SHA256SUMS"

// maxSums bounds that file in bytes.
const maxSums = 16 << 20

// WriteSums writes a line for every file of a directory: the SHA-256 and the name, by name. Lists, signatures, hidden files
// and what is below are left out.
func WriteSums(w io.Writer, dir string) error {
	names, err := summed(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		sum, err := sumFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s  %s\n", sum, name); err != nil {
			return err
		}
	}
	return nil
}

// summed are the names of the files that a list of the directory has.
func summed(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if !e.Type().IsRegular() || strings.HasPrefix(name, ".") || strings.HasPrefix(name, SumsName) || strings.HasSuffix(name, ".minisig") {
			continue
		}
		if strings.ContainsAny(name, "\\\n\r") {
			return nil, fmt.Errorf("the name %q cannot be in %s", name, SumsName)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func sumFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// A SumError is a file that is not what the list says.
type SumError struct{ File, Reason string }

// Error names the file.
func (e *SumError) Error() string { return e.File + ": " + e.Reason }

// Hint says when that is as it should be.
func (*SumError) Hint() string {
	return "what was signed or added after \"packager build\" needs a new list: cd DIR && sha256sum FILES >SHA256SUMS"
}

var sumLine = regexp.MustCompile(`^([0-9a-f]{64}) [ *]([^/\\]+)$`)

// CheckSums holds the files of a directory against its list, and the list against the directory: every file that is wrong,
// missing or not listed is a SumError in the joined error. It returns the names that are right.
func CheckSums(dir string) ([]string, error) {
	f, err := os.Open(filepath.Join(dir, SumsName))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxSums+1))
	if err != nil || len(text) > maxSums {
		return nil, errors.Join(err, fmt.Errorf("read %s: more than a list of files has", f.Name()))
	}
	listed := map[string]bool{}
	var good []string
	var errs []error
	for line := range bytes.Lines(text) {
		m := sumLine.FindStringSubmatch(strings.TrimRight(string(line), "\r\n"))
		if m == nil || m[2] == ".." || m[2] == "." {
			return nil, fmt.Errorf("read %s: not a sum and a name: %.120q", f.Name(), line)
		}
		listed[m[2]] = true
		switch sum, err := sumFile(filepath.Join(dir, m[2])); {
		case errors.Is(err, os.ErrNotExist):
			errs = append(errs, &SumError{m[2], "listed, and not there"})
		case err != nil:
			errs = append(errs, err)
		case sum != m[1]:
			errs = append(errs, &SumError{m[2], "its content is not what was listed"})
		default:
			good = append(good, m[2])
		}
	}
	names, err := summed(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if !listed[name] {
			errs = append(errs, &SumError{name, "there, and not listed"})
		}
	}
	return good, errors.Join(errs...)
}
