package main

import (
	"testing"
	"time"
)

func TestDays(t *testing.T) {
	for text, want := range map[string]time.Duration{"90d": 90 * 24 * time.Hour, "1d12h": 36 * time.Hour, "36h": 36 * time.Hour, "0": 0, "0d": 0, "90m": 90 * time.Minute} {
		var d days
		if err := d.Set(text); err != nil || time.Duration(d) != want {
			t.Errorf("%s is %v, %v", text, time.Duration(d), err)
		}
	}
	for _, text := range []string{"", "d", "-1d", "-3h", "1d-3h", "1.5d", "9999999d", "soon"} {
		var d days
		if err := d.Set(text); err == nil {
			t.Errorf("%q is taken for %v", text, time.Duration(d))
		}
	}
	for text, want := range map[string]string{"48h": "2d", "36h": "36h0m0s", "0": "0s"} {
		var d days
		if err := d.Set(text); err != nil || d.String() != want {
			t.Errorf("%s is shown as %s, %v", text, d.String(), err)
		}
	}
}

func TestAmount(t *testing.T) {
	for text, want := range map[string]int64{"10GiB": 10 << 30, "1.5 GiB": 3 << 29, "500MB": 500e6, "7": 7, "7B": 7, "0": 0, "2kB": 2000} {
		var a amount
		if err := a.Set(text); err != nil || int64(a) != want {
			t.Errorf("%s is %d, %v", text, int64(a), err)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "-1GiB", "ten", "NaN", "Inf", "99999999999TiB", "1 G"} {
		var a amount
		if err := a.Set(text); err == nil {
			t.Errorf("%q is taken for %d", text, int64(a))
		}
	}
	for text, want := range map[string]string{"10GiB": "10GiB", "1.5GiB": "1536MiB", "500MB": "500MB", "0": "0", "7": "7B"} {
		var a amount
		if err := a.Set(text); err != nil || a.String() != want {
			t.Errorf("%s is shown as %s, %v", text, a.String(), err)
		}
	}
}

func TestBytesForPeople(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 40_960: "41.0 kB", 11_500_000: "11.5 MB", 2_340_000_000: "2.3 GB"} {
		if got := inBytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
