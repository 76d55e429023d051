package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// properties is a .agent.properties file, line by line. What nobody changes is rendered byte for byte as it was
// read: comments, order, blank lines, unknown keys, line ends, a byte order mark, even lines that make no sense.
type properties struct {
	mark  string // the byte order mark, if there was one
	lines []propertyLine
}

type propertyLine struct {
	text string // without its end
	end  string // "\n", "\r\n", or "" on a last line that was not finished
	pair bool   // it is a key and a value
	key  string
	val  string // as a reader sees it
	tail string // a comment behind the value, with the blanks before it
}

const byteOrderMark = "\ufeff"

func parseProperties(text string) *properties {
	p := &properties{}
	if rest, ok := strings.CutPrefix(text, byteOrderMark); ok {
		p.mark, text = byteOrderMark, rest
	}
	for text != "" {
		line, end, rest := text, "", ""
		if i := strings.IndexByte(text, '\n'); i >= 0 {
			line, end, rest = text[:i], "\n", text[i+1:]
			if strings.HasSuffix(line, "\r") {
				line, end = line[:len(line)-1], "\r\n"
			}
		}
		p.lines = append(p.lines, parseLine(line, end))
		text = rest
	}
	return p
}

// parseLine reads one line as go-ini and java.util.Properties both would (protocol §2.2), except that nothing is
// an escape and no line continues on the next one: Windows paths end in backslashes.
func parseLine(text, end string) propertyLine {
	l := propertyLine{text: text, end: end}
	trimmed := strings.TrimSpace(text)
	if trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';' || trimmed[0] == '[' {
		return l
	}
	// Both readers take the first of the two signs: "landun.gateway: http://…" is a pair as well.
	i := strings.IndexAny(text, "=:")
	if i < 0 {
		return l
	}
	l.key = strings.TrimSpace(text[:i])
	l.pair = l.key != ""
	l.val, l.tail = splitValue(text[i+1:])
	return l
}

// splitValue strips the blanks and quotes around a value and the comment behind it. A comment needs a blank before
// its sign; go-ini does without, but then a "#" could not be part of a value.
func splitValue(text string) (val, tail string) {
	start := strings.TrimLeftFunc(text, unicode.IsSpace)
	if strings.HasPrefix(start, "`") {
		if i := strings.LastIndexByte(start[1:], '`'); i >= 0 {
			return start[1 : 1+i], start[2+i:]
		}
	}
	val = start
	for i := 0; i < len(val); i++ {
		if (val[i] == '#' || val[i] == ';') && (i == 0 || val[i-1] == ' ' || val[i-1] == '\t') {
			val = strings.TrimRightFunc(val[:i], unicode.IsSpace)
			return unquote(val), start[len(val):]
		}
	}
	val = strings.TrimRightFunc(val, unicode.IsSpace)
	return unquote(val), start[len(val):]
}

func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] && strings.IndexByte(s[1:], s[0]) == len(s)-2 {
		return s[1 : len(s)-1]
	}
	return s
}

// String renders the file.
func (p *properties) String() string {
	var b strings.Builder
	b.WriteString(p.mark)
	for _, l := range p.lines {
		b.WriteString(l.text)
		b.WriteString(l.end)
	}
	return b.String()
}

// get returns the value of a key and the number of its line, counted from 1; 0 when there is no such line. Of
// several lines with one key the last one wins, as for both readers.
func (p *properties) get(key string) (val string, line int) {
	for i, l := range slices.Backward(p.lines) {
		if l.pair && l.key == key {
			return l.val, i + 1
		}
	}
	return "", 0
}

// writable reports why a value cannot stand in the file, nil when every reader will get it back as it is.
func writable(val string) error {
	if i := strings.IndexFunc(val, func(r rune) bool { return r < ' ' || r == 0x7f || r == unicode.ReplacementChar }); i >= 0 {
		return errors.New("a control character in it")
	}
	if strings.ContainsAny(val, "#;`") {
		return fmt.Errorf("one of # ; ` in it, at which an original agent would cut it")
	}
	if strings.HasSuffix(val, `\`) {
		return errors.New("a backslash at its end, by which an original agent would append the next line")
	}
	if got, tail := splitValue(val); got != val || tail != "" {
		return errors.New("quotes or blanks around it")
	}
	return nil
}

// set gives key a value and reports whether the file is different now. A new key is appended.
func (p *properties) set(key, val string) (changed bool, err error) {
	if err := writable(val); err != nil {
		return false, err
	}
	old, n := p.get(key)
	if n == 0 {
		p.append(key, val)
		return true, nil
	}
	if old == val {
		return false, nil
	}
	l := &p.lines[n-1]
	l.val, l.text = val, l.key+"="+val
	comment := strings.TrimSpace(l.tail)
	l.tail = ""
	if comment != "" && (comment[0] == '#' || comment[0] == ';') {
		l.tail = " " + comment
		l.text += l.tail
	}
	return true, nil
}

func (p *properties) append(key, val string) {
	end := "\n"
	if n := len(p.lines); n > 0 {
		if p.lines[0].end == "\r\n" {
			end = "\r\n"
		}
		if p.lines[n-1].end == "" {
			p.lines[n-1].end = end
		}
	}
	p.lines = append(p.lines, propertyLine{text: key + "=" + val, end: end, pair: true, key: key, val: val})
}

// remove drops every line with a key and reports whether there was one.
func (p *properties) remove(key string) bool {
	n := len(p.lines)
	p.lines = slices.DeleteFunc(p.lines, func(l propertyLine) bool { return l.pair && l.key == key })
	return len(p.lines) != n
}

func (p *properties) clone() *properties {
	return &properties{mark: p.mark, lines: slices.Clone(p.lines)}
}
