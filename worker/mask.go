package worker

import (
	"cmp"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// masked replaces a secret (protocol §6.8).
const masked = "******"

// shortest is the length of the shortest text that is masked. Masking "1" or "no" everywhere would hide nothing:
// it would tell what the secret is.
const shortest = 3

// Bounds of what a masker remembers, against a server that declares everything sensitive.
const (
	maxSecrets     = 4096
	maxSecretBytes = 4 << 20
)

// masker hides secrets in texts. The zero value hides nothing.
type masker struct {
	mu      sync.RWMutex
	secrets []string // longest first
	bytes   int
}

// Add makes values secret: as they are, trimmed, as a script's export gives them on (without quotes and line
// breaks, protocol §6.7), as they are written in an address, and each of their lines.
func (m *masker) Add(values ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range values {
		m.add(v)
		m.add(strings.TrimSpace(v))
		m.add(strings.TrimSpace(exported(v)))
		for _, form := range []string{v, exported(v)} {
			m.add(url.QueryEscape(form))
			m.add(url.PathEscape(form))
		}
		for line := range strings.FieldsFuncSeq(v, func(r rune) bool { return r == '\n' || r == '\r' }) {
			m.add(strings.TrimSpace(line))
			m.add(strings.TrimSpace(strings.ReplaceAll(line, "'", "")))
		}
	}
	slices.SortStableFunc(m.secrets, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
}

func (m *masker) add(s string) {
	if len(s) < shortest || len(m.secrets) >= maxSecrets || m.bytes+len(s) > maxSecretBytes || slices.Contains(m.secrets, s) {
		return
	}
	m.secrets = append(m.secrets, s)
	m.bytes += len(s)
}

// Is reports whether a text is a secret as a whole.
func (m *masker) Is(s string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Contains(m.secrets, s)
}

// Mask hides all secrets in a text. Where two overlap, both are hidden as one.
func (m *masker) Mask(s string) string {
	spans := m.spans(s)
	if len(spans) == 0 {
		return s
	}
	var b strings.Builder
	at := 0
	for _, span := range spans {
		b.WriteString(s[at:span[0]])
		b.WriteString(masked)
		at = span[1]
	}
	b.WriteString(s[at:])
	return b.String()
}

// Cut returns how much of a text that goes on can be taken off without taking a secret apart: less than all of it,
// and 0 when it all may be the beginning of one.
func (m *masker) Cut(s string) int {
	m.mu.RLock()
	keep := 0
	if len(m.secrets) > 0 {
		keep = len(m.secrets[0]) - 1
	}
	m.mu.RUnlock()
	cut := max(0, len(s)-keep)
	for _, span := range m.spans(s) {
		if span[0] < cut && cut < span[1] {
			// before it, not behind it: the beginning of another one may overlap its end
			if cut = span[0]; cut == 0 {
				cut = span[1]
			}
			break
		}
	}
	return cut
}

// spans finds the secrets in a text, joined where they overlap, in order.
func (m *masker) spans(s string) [][2]int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var found [][2]int
	for _, secret := range m.secrets {
		for at := 0; at+len(secret) <= len(s); {
			i := strings.Index(s[at:], secret)
			if i < 0 {
				break
			}
			found = append(found, [2]int{at + i, at + i + len(secret)})
			at += i + 1
		}
	}
	slices.SortFunc(found, func(a, b [2]int) int { return cmp.Compare(a[0], b[0]) })
	var joined [][2]int
	for _, span := range found {
		if last := len(joined) - 1; last >= 0 && span[0] < joined[last][1] {
			joined[last][1] = max(joined[last][1], span[1])
		} else {
			joined = append(joined, span)
		}
	}
	return joined
}
