package unpack

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

const (
	maxElement = 255  // bytes of one element of a path
	maxPath    = 4096 // bytes of a path, and of the target of a link
)

// elements takes the name of an entry apart. It is nil for the directory itself ("./"). Empty elements and "." are
// dropped, as "tar -c ." writes them.
// What it refuses has yet to be told whose archive it is.
func elements(name string, depth int) ([]string, *EntryError) {
	if len(name) > maxPath {
		return nil, flaw(ErrLong, nil)
	}
	if name == "" {
		return nil, flaw(ErrName, errors.New("it is empty"))
	}
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, `\`) || drive(name) {
		return nil, flaw(ErrAbsolute, nil)
	}
	// Before anything else is said about a name: does it try to leave?
	for part := range strings.FieldsFuncSeq(name, func(r rune) bool { return r == '/' || r == '\\' }) {
		if part == ".." {
			return nil, flaw(ErrTraversal, nil)
		}
	}
	var path []string
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." {
			continue
		}
		if err := checkElement(part); err != nil {
			return nil, err
		}
		if path = append(path, part); len(path) > depth {
			return nil, flaw(ErrLong, nil)
		}
	}
	return path, nil
}

func flaw(reason Reason, why error) *EntryError { return &EntryError{Reason: reason, Err: why} }

// drive says whether a name starts with a drive letter, as in "C:" and "c:/x".
func drive(name string) bool {
	return len(name) >= 2 && name[1] == ':' && (name[0]|0x20) >= 'a' && (name[0]|0x20) <= 'z'
}

// checkElement says what is wrong with one element of a path.
func checkElement(part string) *EntryError {
	if len(part) > maxElement {
		return flaw(ErrLong, nil)
	}
	if !utf8.ValidString(part) {
		return flaw(ErrName, errors.New("it is not UTF-8"))
	}
	for _, r := range part {
		// The letters that cannot be seen are ignored by some file systems when they compare names.
		if unicode.In(r, unicode.Cc, unicode.Cf) || strings.ContainsRune(`\:*?"<>|`, r) {
			return flaw(ErrName, fmt.Errorf("it holds %q", r))
		}
	}
	if last := part[len(part)-1]; last == '.' || last == ' ' {
		return flaw(ErrName, fmt.Errorf("it ends in %q", last))
	}
	if reserved(part) {
		return flaw(ErrReserved, nil)
	}
	return nil
}

// reserved says whether Windows takes a name for a device, with any extension: CON, nul.txt, COM¹.
func reserved(part string) bool {
	base, _, _ := strings.Cut(part, ".")
	base = fold(strings.TrimRight(base, " "))
	switch base {
	case "con", "prn", "aux", "nul", "conin$", "conout$", "clock$":
		return true
	}
	return len(base) == 4 && (base[:3] == "com" || base[:3] == "lpt") && base[3] >= '0' && base[3] <= '9'
}

// fold maps names that any file system may take for the same to one key: without case, in one form of composed letters.
// It is wider than any of the file systems, as it also joins compatible forms ("ﬁ" and "fi"), so that the full case
// folding needs no table but the one of ß.
func fold(part string) string {
	ascii := true
	upper := false
	for i := range len(part) {
		ascii = ascii && part[i] < utf8.RuneSelf
		upper = upper || 'A' <= part[i] && part[i] <= 'Z'
	}
	if ascii {
		if upper {
			return strings.ToLower(part)
		}
		return part
	}
	var b strings.Builder
	for _, r := range norm.NFKD.String(part) {
		if r == 'ß' || r == 'ẞ' {
			b.WriteString("ss")
			continue
		}
		b.WriteRune(smallest(r))
	}
	return norm.NFKD.String(b.String())
}

// smallest is the one of all the runes that r equals without case that stands for them: in ASCII the lower case letter.
func smallest(r rune) rune {
	least := r
	for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
		least = min(least, other)
	}
	if 'A' <= least && least <= 'Z' {
		return least + 'a' - 'A'
	}
	return least
}
