package systemd

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Instance stands in the values of a template's Unit for the name of the instance (%i). No path and no argument can
// hold this character otherwise.
const Instance = "\x00"

// ValueError: a value cannot be written into a unit so that systemd reads it back.
type ValueError struct {
	What  string // "home directory", "program", "account"
	Value string
	Why   string
}

// Error names the value and what is wrong with it.
func (e *ValueError) Error() string {
	return fmt.Sprintf("%s %q: systemd does not take %s there", e.What, e.Value, e.Why)
}

// Hint says what to do.
func (e *ValueError) Hint() string {
	if e.What == "account" {
		return "give the number of the account instead of its name"
	}
	return "move the agent to a directory whose path is made of ordinary characters"
}

// plainWord is what needs no quotes and no escapes.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:=,+-]+$`)

// word writes one argument of a command line (systemd.service(5), COMMAND LINES): quoted, with the escapes of C for what
// is not text, % and $ doubled, because systemd expands specifiers and variables.
func word(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case s[i:i+size] == Instance:
			b.WriteString("%i")
		case r == '%' || r == '$':
			b.WriteRune(r)
			b.WriteRune(r)
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == utf8.RuneError && size == 1, r < ' ', r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		default:
			b.WriteString(s[i : i+size])
		}
		i += size
	}
	b.WriteByte('"')
	return b.String()
}

// program writes the path of the program that begins a command line. It differs from an argument: variables are not
// expanded in it, and quotes, backslashes and control characters are refused in it.
func program(s string) (string, error) {
	p, err := absolute("program", s)
	if err != nil {
		return "", err
	}
	if plainWord.MatchString(p) {
		return p, nil
	}
	return `"` + p + `"`, nil
}

// directory writes a path that is the whole value of a directive, which systemd takes as it is, specifiers apart.
func directory(what, s string) (string, error) {
	p, err := absolute(what, s)
	if err != nil {
		return "", err
	}
	if strings.TrimSpace(s) != s {
		return "", &ValueError{what, s, "a path that ends in a blank"}
	}
	return p, nil
}

// absolute writes a path that has none of the characters systemd refuses, and no specifiers but Instance.
func absolute(what, s string) (string, error) {
	switch {
	case !path.IsAbs(s) || path.Clean(s) != s:
		return "", &ValueError{what, s, "a path that is not absolute and without . and .."}
	case !utf8.ValidString(s):
		return "", &ValueError{what, s, "what is not UTF-8"}
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && string(r) != Instance || r == 0x7f }):
		return "", &ValueError{what, s, "control characters"}
	case strings.ContainsAny(s, `"'\`):
		return "", &ValueError{what, s, "quotes and backslashes"}
	}
	return strings.ReplaceAll(strings.ReplaceAll(s, "%", "%%"), Instance, "%i"), nil
}

// accountForm is what systemd takes as a name without a warning, and numbers.
var accountForm = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_-]{0,30}|[0-9]{1,10})$`)

// ValidAccount reports whether a unit can hold the name, or number, of an account.
func ValidAccount(s string) bool { return accountForm.MatchString(s) }

func account(s string) (string, error) {
	if !ValidAccount(s) {
		return "", &ValueError{"account", s, "that name"}
	}
	return s, nil
}

// sentence writes free text, such as a description, on one line.
func sentence(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	s = strings.Map(func(r rune) rune {
		if r < ' ' && string(r) != Instance || r == 0x7f || r == '\\' {
			return ' '
		}
		return r
	}, s)
	return strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(s), "%", "%%"), Instance, "%i")
}
