package packaging

import (
	"regexp"
	"strings"
)

// scanner reads a shell script for one purpose: where values stand without quotes. It knows what our scripts use, and of what it
// does not know it says rather too much.
type scanner struct {
	text  string
	at    int
	line  int
	found []int
}

func newScanner(text string) *scanner { return &scanner{text: text, line: 1} }

// unquoted are the lines with values that would be split.
func (s *scanner) unquoted() []int {
	s.list(0)
	return s.found
}

func (s *scanner) peek(ahead int) byte {
	if s.at+ahead >= len(s.text) {
		return 0
	}
	return s.text[s.at+ahead]
}

func (s *scanner) next() byte {
	c := s.peek(0)
	if c == '\n' {
		s.line++
	}
	s.at++
	return c
}

var (
	assigns  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*\+?=`)
	hereWord = regexp.MustCompile(`^<<-?\s*(['"]?)([A-Za-z_]+)['"]?`)
)

// list reads commands up to a closing parenthesis, or to the end.
func (s *scanner) list(closing byte) {
	word, before := s.at, ""
	var here []string
	finish := func() { // a word ends here
		if s.at > word {
			before = s.text[word:s.at]
		}
	}
	for s.at < len(s.text) {
		c := s.peek(0)
		if closing != 0 && c == closing {
			s.next()
			return
		}
		switch c {
		case ' ', '\t', ';', '&', '|', '\n', '>':
			finish()
			s.next()
			if c == '\n' {
				for _, end := range here {
					s.skipHere(end)
				}
				here = nil
			}
			if strings.ContainsRune(";&|\n", rune(c)) {
				before = ""
			}
			word = s.at
		case '(':
			s.next()
			word, before = s.at, ""
		case ')': // of a pattern of case
			s.next()
			word, before = s.at, ""
		case '#':
			if s.at == word {
				for s.at < len(s.text) && s.peek(0) != '\n' {
					s.next()
				}
				word = s.at
			} else {
				s.next()
			}
		case '<':
			if m := hereWord.FindStringSubmatch(s.text[s.at:]); m != nil {
				here = append(here, m[2])
				s.at += len(m[0])
			} else {
				s.next()
			}
			word = s.at
		case '\\':
			s.next()
			s.next()
		case '\'':
			s.single()
		case '"':
			s.double()
		case '$', '`':
			whole := before == "case" || assigns.MatchString(s.text[word:s.at])
			if line := s.line; s.value() && !whole {
				s.found = append(s.found, line)
			}
		default:
			s.next()
		}
	}
}

func (s *scanner) skipHere(end string) {
	for s.at < len(s.text) {
		line, _, _ := strings.Cut(s.text[s.at:], "\n")
		s.at = min(len(s.text), s.at+len(line)+1)
		s.line++
		if strings.TrimLeft(line, "\t") == end {
			return
		}
	}
}

func (s *scanner) single() {
	s.next()
	for s.at < len(s.text) && s.next() != '\'' {
		continue
	}
}

func (s *scanner) double() {
	s.next()
	for s.at < len(s.text) {
		switch s.peek(0) {
		case '"':
			s.next()
			return
		case '\\':
			s.next()
			s.next()
		case '$', '`':
			s.value()
		default:
			s.next()
		}
	}
}

// value reads what begins with a dollar, and reports whether the shell would split it. $#, $? and $! are numbers.
func (s *scanner) value() bool {
	if s.next() == '`' {
		for s.at < len(s.text) && s.next() != '`' {
			continue
		}
		return true
	}
	switch c := s.peek(0); {
	case c == '(' && s.peek(1) == '(':
		depth := 0
		for s.at < len(s.text) {
			switch s.next() {
			case '(':
				depth++
			case ')':
				if depth--; depth == 0 {
					return false
				}
			}
		}
		return false
	case c == '(':
		s.next()
		s.list(')')
		return true
	case c == '{':
		for s.at < len(s.text) && s.next() != '}' {
			continue
		}
		return true
	case c == '#' || c == '?' || c == '!' || c == '$':
		s.next()
		return false
	case c == '@' || c == '*' || c >= '0' && c <= '9':
		s.next()
		return true
	}
	begin := s.at
	for s.at < len(s.text) && (s.peek(0) == '_' || s.peek(0) >= '0' && s.peek(0) <= '9' || s.peek(0)|0x20 >= 'a' && s.peek(0)|0x20 <= 'z') {
		s.next()
	}
	return s.at > begin
}
