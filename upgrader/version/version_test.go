package version

import (
	"slices"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	// Each line is newer than the one before it; the words of a line are equal.
	order := [][]string{
		{"0", "v0.0.0", "0.0"},
		{"v0.0.1-alpha"},
		{"v0.0.1"},
		{"v0.9.10"},
		{"v0.10.0-SNAPSHOT"},
		{"v0.10.0"},
		{"v1.2.3-1"},
		{"v1.2.3-2"},
		{"v1.2.3-11"},
		{"v1.2.3-alpha"},
		{"v1.2.3-alpha.1"},
		{"v1.2.3-alpha.beta"},
		{"v1.2.3-beta"},
		{"v1.2.3-beta.2"},
		{"v1.2.3-beta.11"},
		{"v1.2.3-dev.7"},
		{"v1.2.3-rc.1", "1.2.3-rc.1+build.5", "1.2.3-rc.01"},
		{"v1.2.3-rc.1-4-g1a2b3c4", "v1.2.3-rc.1-4-gffff"},
		{"v1.2.3-rc.1.1"},
		{"v1.2.3-rc-1"},
		{"v1.2.3", "1.2.3", "v1.2.3+x", "v1.2.3-dirty", "v1.2.3.0", "v01.2.3", "v1.2.3-0-g1a2b3c"},
		{"v1.2.3-5-g1a2b3c", "v1.2.3-5-gabcd", "v1.2.3-5-g1a2b3c-dirty", "v1.2.3-5-g1a2b3c+x"},
		{"v1.2.3-12-g1a2b3c"},
		{"v1.2.3.1"},
		{"v1.2.4-rc.1"},
		{"v1.2.4"},
		{"v1.3"},
		{"1.8.0_292", "1.8.0.292-0-gabcd"},
		{"1.8.0_352-b08"},
		{"1.8.0_352", "1.8.0.352"},
		{"11.0.2+9"},
		{"17.0.12", "17.0.12+7-LTS"},
		{"v18446744073709551616.0.0"},
		{"v18446744073709551617.0.0"},
	}
	for i, as := range order {
		for j, bs := range order {
			for _, a := range as {
				for _, b := range bs {
					want := 0
					if i < j {
						want = -1
					} else if i > j {
						want = 1
					}
					if got, ok := Compare(a, b); !ok || got != want {
						t.Errorf("%s, %s: %d, %v; want %d", a, b, got, ok, want)
					}
				}
			}
		}
	}
	for _, bad := range []string{"", "v", "latest", "v1.", ".1", "v1..2", "1.2.3-", "1.2.3-rc..1", "1.2.3+", "vv1", "v-1", "1.2.3 ", "1.2.3\n", "1,2", "v1.2.3/x",
		"1.8_0_352", "1.8_0.1", "1.8.0_", "1.2.3.4.5.6.7.8.9", "１.2.3", "v1.2.3-5-g1a2b3c-6-gxyz\x00", strings.Repeat("1", 129)} {
		for _, pair := range [][2]string{{bad, "v1.2.3"}, {"v1.2.3", bad}, {bad, bad}} {
			if got, ok := Compare(pair[0], pair[1]); ok || got != 0 {
				t.Errorf("%q, %q: %d, %v", pair[0], pair[1], got, ok)
			}
		}
	}
}

// FuzzCompare: it is an order of everything that is a version.
func FuzzCompare(f *testing.F) {
	f.Add("v1.2.3", "v1.2.3-rc.1", "v1.2.3-5-g1a2b3c")
	f.Add("1.8.0_352-b08", "17.0.12+7", "0")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		all := []string{a, b, c}
		for _, x := range all {
			if order, ok := Compare(x, x); order != 0 || ok != Valid(x) {
				t.Errorf("%q and itself: %d, %v", x, order, ok)
			}
			for _, y := range all {
				there, ok := Compare(x, y)
				back, ok2 := Compare(y, x)
				if there != -back || ok != ok2 || ok != (Valid(x) && Valid(y)) || !ok && there != 0 {
					t.Errorf("%q, %q: %d, %v and back %d, %v", x, y, there, ok, back, ok2)
				}
			}
		}
		if !Valid(a) || !Valid(b) || !Valid(c) {
			return
		}
		slices.SortFunc(all, func(x, y string) int { order, _ := Compare(x, y); return order })
		first, _ := Compare(all[0], all[1])
		second, _ := Compare(all[1], all[2])
		if across, _ := Compare(all[0], all[2]); first > 0 || second > 0 || across > 0 || across == 0 && (first != 0 || second != 0) {
			t.Errorf("no order: %q", all)
		}
	})
}
