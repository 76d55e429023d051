package config

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Window is a part of each day, from a minute up to another one, perhaps over midnight. The zero Window is always.
type Window struct {
	From, To int // minutes since midnight, on the clock of the wall; To is not in it
}

// day is its minutes.
const day = 24 * 60

// Contains reports whether an instant is in the window, by the clock of its own time zone.
func (w Window) Contains(t time.Time) bool {
	hour, minute, _ := t.Clock()
	at := hour*60 + minute
	switch {
	case w == Window{}:
		return true
	case w.From < w.To:
		return w.From <= at && at < w.To
	}
	return w.From <= at || at < w.To
}

// String is the window as agent.toml has it.
func (w Window) String() string {
	if w == (Window{}) {
		return ""
	}
	return fmt.Sprintf("%02d:%02d-%02d:%02d", w.From/60, w.From%60, w.To/60, w.To%60)
}

// parseWindow reads "22:00-06:00". "00:00-24:00" is always.
func parseWindow(text string) (Window, error) {
	first, last, found := strings.Cut(text, "-")
	from, ok := parseMinute(first)
	to, ok2 := parseMinute(last)
	switch {
	case !found || !ok || !ok2 || from == day:
		return Window{}, errors.New("it is not two times of a day")
	case from == to:
		return Window{}, errors.New("it has no length")
	case from == 0 && to == day:
		return Window{}, nil
	}
	return Window{from, to % day}, nil
}

// parseMinute reads "06:00", as minutes since midnight; 24:00 is the end of the day.
func parseMinute(text string) (int, bool) {
	text = strings.TrimSpace(text)
	if text == "24:00" {
		return day, true
	}
	t, err := time.Parse("15:04", text)
	if err != nil {
		return 0, false
	}
	return t.Hour()*60 + t.Minute(), true
}
