package version

import (
	"cmp"
	"strings"
)

// MaxLen bounds the length of a version, in bytes.
const MaxLen = 128

// maxNumbers bounds the numbers of a version: BK-CI has three, JDKs up to five.
const maxNumbers = 8

// Compare orders two versions: -1 when a is older than b, 0 when neither is older, +1 when a is newer. It reports false when
// one of them is no version, and then there is no order.
//
// A version is, in this order,
//   - numbers joined by dots, with or without a v in front: v1.2.3, 17.0.12; the last of them may follow an underscore, as
//     in 1.8.0_352. A missing number is 0;
//   - a pre-release, as semantic versioning has it: v1.2.3-rc.1 is older than v1.2.3, numbers in it count as numbers and are
//     older than words. So are -SNAPSHOT and -dev.7: builds on the way to that version;
//   - the commits since, as git describe has them: v1.2.3-5-g1a2b3c is newer than v1.2.3, and older than v1.2.4-rc.1;
//   - -dirty and +anything, neither of which makes a version older or newer.
func Compare(a, b string) (order int, comparable bool) {
	x, ok := parse(a)
	if !ok {
		return 0, false
	}
	y, ok := parse(b)
	if !ok {
		return 0, false
	}
	return x.compare(y), true
}

// version is one taken apart. Numbers are texts of digits without leading zeros, because foreign ones have no bound.
type version struct {
	numbers [maxNumbers]string
	pre     []string // nil for a release
	commits string
}

func (v version) compare(w version) int {
	for i := range v.numbers {
		if c := compareNumbers(v.numbers[i], w.numbers[i]); c != 0 {
			return c
		}
	}
	switch {
	case v.pre == nil && w.pre != nil:
		return 1
	case v.pre != nil && w.pre == nil:
		return -1
	}
	for i := range min(len(v.pre), len(w.pre)) {
		if c := comparePre(v.pre[i], w.pre[i]); c != 0 {
			return c
		}
	}
	if c := cmp.Compare(len(v.pre), len(w.pre)); c != 0 {
		return c
	}
	return compareNumbers(v.commits, w.commits)
}

// compareNumbers compares digits without leading zeros; "" is 0.
func compareNumbers(a, b string) int {
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return cmp.Compare(a, b)
}

// comparePre compares one part of two pre-releases (semver.org, 11.4).
func comparePre(a, b string) int {
	switch x, y := digits(a), digits(b); {
	case x && y:
		return compareNumbers(strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0"))
	case x:
		return -1
	case y:
		return 1
	}
	return cmp.Compare(a, b)
}

// Valid reports whether a text is a version.
func Valid(text string) bool {
	_, ok := parse(text)
	return ok
}

func parse(text string) (v version, ok bool) {
	if len(text) > MaxLen || !Plain(text) {
		return v, false
	}
	text, build, built := strings.Cut(text, "+")
	if built && build == "" {
		return v, false
	}
	text = strings.TrimSuffix(text, "-dirty")
	text, v.commits = cutCommits(text)
	core, pre, isPre := strings.Cut(strings.TrimPrefix(text, "v"), "-")
	if isPre {
		v.pre = strings.Split(pre, ".")
		for _, part := range v.pre {
			if part == "" {
				return v, false
			}
		}
	}
	if before, update, found := strings.Cut(core, "_"); found {
		if strings.ContainsAny(update, "._") {
			return v, false
		}
		core = before + "." + update
	}
	numbers := strings.Split(core, ".")
	if len(numbers) > maxNumbers {
		return v, false
	}
	for i, n := range numbers {
		if !digits(n) {
			return v, false
		}
		v.numbers[i] = strings.TrimLeft(n, "0")
	}
	return v, true
}

// cutCommits cuts what git describe puts behind a tag, "-5-g1a2b3c".
func cutCommits(text string) (tag, commits string) {
	at := strings.LastIndex(text, "-g")
	if at < 0 || len(text)-at-2 < 4 || strings.Trim(text[at+2:], "0123456789abcdef") != "" {
		return text, ""
	}
	tag, commits, ok := cutLast(text[:at], "-")
	if !ok || !digits(commits) {
		return text, ""
	}
	return tag, strings.TrimLeft(commits, "0")
}

func cutLast(s, sep string) (before, after string, found bool) {
	at := strings.LastIndex(s, sep)
	if at < 0 {
		return s, "", false
	}
	return s[:at], s[at+len(sep):], true
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// Plain reports whether a text is a word of the characters that names and versions are made of.
func Plain(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z':
			return false
		}
		return !strings.ContainsRune("._+-", r)
	})
}
