package repo

import (
	"cmp"
	"strings"
)

// compareDeb orders versions as dpkg does: [epoch:]upstream[-revision], where ~ is before everything, the end included
// (deb-version(7)).
func compareDeb(a, b string) int {
	epochA, restA := debEpoch(a)
	epochB, restB := debEpoch(b)
	upstreamA, revisionA := debRevision(restA)
	upstreamB, revisionB := debRevision(restB)
	return cmp.Or(compareDigits(epochA, epochB), compareDebPart(upstreamA, upstreamB), compareDebPart(revisionA, revisionB))
}

func debEpoch(v string) (epoch, rest string) {
	if epoch, rest, ok := strings.Cut(v, ":"); ok {
		return epoch, rest
	}
	return "0", v
}

func debRevision(v string) (upstream, revision string) {
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		return v[:i], v[i+1:]
	}
	return v, ""
}

// compareDebPart goes through text and numbers in turn.
func compareDebPart(a, b string) int {
	for a != "" || b != "" {
		var textA, textB, numberA, numberB string
		textA, a = span(a, false)
		textB, b = span(b, false)
		if c := compareDebText(textA, textB); c != 0 {
			return c
		}
		numberA, a = span(a, true)
		numberB, b = span(b, true)
		if c := compareDigits(numberA, numberB); c != 0 {
			return c
		}
	}
	return 0
}

// span takes digits, or what is none, from the beginning.
func span(s string, digits bool) (taken, rest string) {
	for i := range len(s) {
		if isDigit(s[i]) != digits {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

// compareDebText orders letters before everything else, and ~ before the end.
func compareDebText(a, b string) int {
	order := func(s string, i int) int {
		switch {
		case i >= len(s):
			return 0
		case s[i] == '~':
			return -1
		case isLetter(s[i]):
			return int(s[i])
		}
		return int(s[i]) + 256
	}
	for i := range max(len(a), len(b)) {
		if c := cmp.Compare(order(a, i), order(b, i)); c != 0 {
			return c
		}
	}
	return 0
}

// compareDigits compares numbers of any length; "" is 0.
func compareDigits(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

// An evr is what versions of rpm packages consist of.
type evr struct{ epoch, version, release string }

// parseEVR splits [epoch:]version[-release] as rpm writes dependencies.
func parseEVR(text string) evr {
	e := evr{epoch: "0", version: text}
	if epoch, rest, ok := strings.Cut(text, ":"); ok && strings.Trim(epoch, "0123456789") == "" {
		e.epoch, e.version = epoch, rest
		if epoch == "" {
			e.epoch = "0"
		}
	}
	if i := strings.LastIndexByte(e.version, '-'); i >= 0 {
		e.version, e.release = e.version[:i], e.version[i+1:]
	}
	return e
}

// String is the version as rpm prints it, without an epoch of 0.
func (e evr) String() string {
	text := e.version
	if e.release != "" {
		text += "-" + e.release
	}
	if e.epoch != "" && e.epoch != "0" {
		text = e.epoch + ":" + text
	}
	return text
}

func (e evr) compare(o evr) int {
	return cmp.Or(compareDigits(e.epoch, o.epoch), compareRPMPart(e.version, o.version), compareRPMPart(e.release, o.release))
}

// compareRPM orders versions as rpm does.
func compareRPM(a, b string) int { return parseEVR(a).compare(parseEVR(b)) }

// compareRPMPart is rpmvercmp: runs of digits and runs of letters; all else separates. A number is after letters, ~ is
// before the end, ^ after the end and before anything else.
func compareRPMPart(a, b string) int {
	for {
		a, b = separators(a), separators(b)
		if tildeA, tildeB := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~"); tildeA || tildeB {
			if tildeA != tildeB {
				return before(tildeA)
			}
			a, b = a[1:], b[1:]
			continue
		}
		if caretA, caretB := strings.HasPrefix(a, "^"), strings.HasPrefix(b, "^"); caretA || caretB {
			switch {
			case a == "":
				return -1
			case b == "":
				return 1
			case caretA != caretB:
				return before(caretA)
			}
			a, b = a[1:], b[1:]
			continue
		}
		if a == "" || b == "" {
			return cmp.Compare(len(a), len(b))
		}
		digits := isDigit(a[0])
		var partA, partB string
		partA, a = rpmSpan(a, digits)
		partB, b = rpmSpan(b, digits)
		if partB == "" { // of different kinds: the number is newer
			return before(!digits)
		}
		c := cmp.Compare(partA, partB)
		if digits {
			c = compareDigits(partA, partB)
		}
		if c != 0 {
			return c
		}
	}
}

// before is what compares a to b when exactly one of them has something that makes it older.
func before(a bool) int {
	if a {
		return -1
	}
	return 1
}

func separators(s string) string {
	return strings.TrimLeftFunc(s, func(r rune) bool {
		return r != '~' && r != '^' && (r > 127 || !isDigit(byte(r)) && !isLetter(byte(r)))
	})
}

func rpmSpan(s string, digits bool) (taken, rest string) {
	for i := range len(s) {
		if digits && !isDigit(s[i]) || !digits && !isLetter(s[i]) {
			return s[:i], s[i:]
		}
	}
	return s, ""
}
