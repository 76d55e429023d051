package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/service/control"
)

// ago says how long something is past: "3 s ago".
func ago(now, then time.Time) string {
	d := now.Sub(then)
	if d < 0 {
		d = 0
	}
	return length(d) + " ago"
}

// length says how long: "3 s", "5 min", "9 h 0 min", "3 d 4 h".
func length(d time.Duration) string {
	if d = d.Round(time.Second); d < 2*time.Minute {
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	switch d = d.Round(time.Minute); {
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d d %d h", int(d.Hours())/24, int(d.Hours())%24)
}

// clock is a time of day, with its date: whoever reads it may not know which night it was.
func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func since(d *control.Drain) string {
	if d == nil {
		return ""
	}
	return " since " + clock(d.Since)
}

// count is a number and its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if stem, ok := strings.CutSuffix(noun, "y"); ok {
		return fmt.Sprintf("%d %sies", n, stem)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// size is a number of bytes for people.
func size(n uint64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	case n < 1<<30:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,=\\-]+$`)

// shell quotes a word so that what is printed can be typed.
func shell(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return quoted(word)
}
