//go:build !windows

package worker

// encode and decode are about code pages, which only Windows has.
func encode(text, _ string) []byte { return []byte(text) }
func decode(line, _ string) string { return line }
