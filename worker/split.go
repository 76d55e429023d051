package worker

import (
	"strings"
	"unicode/utf8"
)

// maxLine is how much output without a line end is collected before it is passed on as if one had come, in bytes.
const maxLine = 64 << 10

// maxPiece is the longest message the server takes, in characters as Java counts them (protocol §6.8).
const maxPiece = 16384

// splitter cuts output into lines. LF, CR and CRLF end a line: a progress bar that returns to the beginning of its
// line becomes many lines.
type splitter struct {
	line func(string)     // called with each line, without its end
	cut  func(string) int // how much of an endless line may be passed on
	buf  []byte
	cr   bool // the last byte was a CR
}

// Write takes the next output; it always takes all of it.
func (s *splitter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if s.cr {
			s.cr = false
			if p[0] == '\n' {
				p = p[1:]
				continue
			}
		}
		end := -1
		for i, c := range p {
			if c == '\n' || c == '\r' {
				end = i
				break
			}
		}
		if end >= 0 && len(s.buf)+end <= maxLine {
			s.line(string(s.buf) + string(p[:end]))
			s.buf = s.buf[:0]
			s.cr = p[end] == '\r'
			p = p[end+1:]
			continue
		}
		take := min(len(p), maxLine+1-len(s.buf))
		if end >= 0 {
			take = min(take, end)
		}
		s.buf = append(s.buf, p[:take]...)
		p = p[take:]
		if len(s.buf) > maxLine {
			s.overflow()
		}
	}
	return n, nil
}

// overflow passes on as much of an endless line as is safe: not half a secret, not half a character.
func (s *splitter) overflow() {
	text := string(s.buf)
	cut := s.cut(text)
	for back := 0; back < utf8.UTFMax && cut > 0 && cut < len(text) && !utf8.RuneStart(text[cut]); back++ {
		cut--
	}
	if cut <= 0 {
		cut = len(text) // a secret as long as this cannot be held together
	}
	s.line(text[:cut])
	s.buf = append(s.buf[:0], text[cut:]...)
}

// Close passes on a last line that has no end. The error is always nil.
func (s *splitter) Close() error {
	if len(s.buf) > 0 {
		s.line(string(s.buf))
		s.buf = nil
	}
	return nil
}

// pieces makes a line fit for JSON and cuts it to what the server takes. There is at least one piece.
func pieces(line string) []string {
	line = strings.ToValidUTF8(line, "\uFFFD")
	if len(line) <= maxPiece {
		return []string{line}
	}
	var out []string
	begin, count := 0, 0
	for i, r := range line {
		units := 1
		if r > 0xffff {
			units = 2
		}
		if count+units > maxPiece {
			out = append(out, line[begin:i])
			begin, count = i, 0
		}
		count += units
	}
	return append(out, line[begin:])
}
