package config

import (
	"testing"
	"time"
	_ "time/tzdata"
)

func TestWindows(t *testing.T) {
	for text, want := range map[string]struct{ in, out []string }{
		"":              {[]string{"00:00", "12:00", "23:59"}, nil},
		"00:00-24:00":   {[]string{"00:00", "12:00", "23:59"}, nil},
		"22:00-06:00":   {[]string{"22:00", "23:59", "00:00", "05:59"}, []string{"06:00", "12:00", "21:59"}},
		"09:30 - 17:00": {[]string{"09:30", "16:59"}, []string{"09:29", "17:00", "00:00", "23:59"}},
		"22:00-24:00":   {[]string{"22:00", "23:59"}, []string{"00:00", "21:59"}},
		"22:00-00:00":   {[]string{"22:00", "23:59"}, []string{"00:00", "21:59"}},
		"00:00-06:00":   {[]string{"00:00", "05:59"}, []string{"06:00", "23:59"}},
	} {
		c, err := parseConfig("agent.toml", "[upgrade]\nwindow = \""+text+"\"\n")
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		w := c.Upgrade.Window
		for _, at := range want.in {
			if !w.Contains(clock(t, at)) {
				t.Errorf("%q does not contain %s", text, at)
			}
		}
		for _, at := range want.out {
			if w.Contains(clock(t, at)) {
				t.Errorf("%q contains %s", text, at)
			}
		}
		if again, err := parseWindow(w.String()); w != (Window{}) && (err != nil || again != w) {
			t.Errorf("%q is written as %q", text, w)
		}
	}
}

func clock(t *testing.T, text string) time.Time {
	t.Helper()
	zone, err := time.LoadLocation("Asia/Shanghai")
	if err != nil {
		t.Fatal(err)
	}
	at, err := time.ParseInLocation("2006-01-02 15:04:05", "2026-02-28 "+text+":30", zone)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// The window goes by the clock on the wall, also in the night in which one hour is missing.
func TestAWindowGoesByTheWall(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	w := Window{From: 2 * 60, To: 4 * 60}
	before := time.Date(2026, 3, 29, 1, 59, 59, 0, zone)
	if w.Contains(before) || !w.Contains(before.Add(time.Second)) || w.Contains(before.Add(time.Hour+time.Second)) {
		t.Error("the window of an hour is not from 3 to 4 in that night")
	}
}
