package worker

import "strings"

// maxKey bounds what is taken for a variable's name, in bytes.
const maxKey = 256

// replacer fills in variables (protocol §6.7).
type replacer struct {
	lookup      func(key string) (string, bool)
	constrained bool // dialect CONSTRAINED: ${key} belongs to the shell, only ${{ key }} is ours
}

// Text replaces ${key} and ${{ key }} once, without looking again at what it has filled in. What is not known stays
// as it is, and so do comment lines.
func (r replacer) Text(text string) string {
	if !strings.Contains(text, "${") {
		return text
	}
	var b strings.Builder
	b.Grow(len(text))
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			b.WriteString(line)
		} else {
			r.line(&b, line, nil)
		}
	}
	return b.String()
}

// Strict is Text for one line where an unknown variable is an error: its names come back.
func (r replacer) Strict(text string) (string, []string) {
	var b strings.Builder
	var unknown []string
	r.line(&b, text, &unknown)
	return b.String(), unknown
}

func (r replacer) line(b *strings.Builder, line string, unknown *[]string) {
	for {
		at := strings.Index(line, "${")
		if at < 0 {
			b.WriteString(line)
			return
		}
		b.WriteString(line[:at])
		line = line[at:]
		length, key := reference(line)
		if length > 0 && !(r.constrained && !strings.HasPrefix(line, "${{")) {
			if value, ok := r.lookup(key); ok {
				b.WriteString(value)
				line = line[length:]
				continue
			}
			if unknown != nil {
				*unknown = append(*unknown, key)
			}
		}
		b.WriteString(line[:2])
		line = line[2:]
	}
}

// reference reads the reference that a text begins with: its length, 0 when it is none, and the name.
func reference(text string) (length int, key string) {
	open, end := "${", "}"
	if strings.HasPrefix(text, "${{") {
		open, end = "${{", "}}"
	}
	window := text[len(open):]
	window = window[:min(len(window), maxKey+len(end))]
	i := strings.Index(window, end)
	if i < 0 {
		return 0, ""
	}
	key = window[:i]
	if open == "${{" {
		key = strings.TrimSpace(key)
	}
	if key == "" || strings.ContainsAny(key, "{}$\"'`\\\r\n\t ") {
		return 0, ""
	}
	return len(open) + i + len(end), key
}
