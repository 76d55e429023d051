package controller

import (
	"bytes"
	"strings"
)

// allPresent reports whether a JSON object has all members, none of them null; a dot in a name is a member of a member. It
// looks at the text once and makes no copy, and may say no where the answer is yes: when a name is written with escapes.
// Of a text that is no JSON it may say anything.
func allPresent(data []byte, names []string) bool {
	found, plain := uint64(0), true
	eachMember(data, func(name, value []byte) {
		plain = plain && bytes.IndexByte(name, '\\') < 0
		for i, want := range names {
			first, rest, nested := strings.Cut(want, ".")
			if string(name) != first {
				continue
			}
			if bytes.Equal(value, []byte("null")) || nested && !allPresent(value, []string{rest}) {
				found &^= 1 << i // the last member of a name counts
			} else {
				found |= 1 << i
			}
		}
	})
	return plain && found == 1<<len(names)-1
}

// eachMember calls f with every member of a JSON object: the text between the quotes of its name, and its value.
func eachMember(data []byte, f func(name, value []byte)) {
	data = bytes.TrimLeft(data, " \t\r\n")
	if len(data) == 0 || data[0] != '{' {
		return
	}
	depth, start := 0, 0 // of the value, in data
	var name []byte
	for i := 0; i < len(data); i++ {
		switch c := data[i]; c {
		case '"':
			end := i + 1
			for end < len(data) && data[end] != '"' {
				if data[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(data) {
				return
			}
			if depth == 1 && name == nil {
				name = data[i+1 : end]
			}
			i = end
		case ':':
			if depth == 1 {
				start = i + 1
			}
		case '{', '[':
			depth++
		case ',', '}', ']':
			if depth == 1 && name != nil && start > 0 {
				f(name, bytes.TrimSpace(data[start:i]))
				name, start = nil, 0
			}
			if c != ',' {
				depth--
			}
			if depth == 0 {
				return
			}
		}
	}
}
