package repo

import (
	"os/exec"
	"strings"
	"testing"
)

// ascending are versions from the oldest to the newest, of both formats; those in one line are equal.
func ascending(more ...string) [][]string {
	lines := append([]string{"0~", "0", "0.1", "1.0~~", "1.0~~a", "1.0~", "1.0~rc.1", "1.0~rc.2", "1.0~rc.10", "1.0 01.0 1.00", "1.2.3~dev.9", "1.2.3~dev.10", "1.2.3", "1.2.10", "1.10"}, more...)
	var all [][]string
	for _, line := range lines {
		all = append(all, strings.Fields(line))
	}
	return all
}

func checkOrder(t *testing.T, compare func(a, b string) int, all [][]string) {
	t.Helper()
	for i, line := range all {
		for j, other := range all {
			for _, a := range line {
				for _, b := range other {
					if got, want := compare(a, b), sign(i-j); got != want {
						t.Errorf("%s, %s: %d, not %d", a, b, got, want)
					}
				}
			}
		}
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestDebianVersionsAreOrdered(t *testing.T) {
	all := ascending("1.10-0 1.10-00", "1.10-1~bpo12+1", "1.10-1", "1.10-1+b1", "1.10a", "1.10a1", "1.10+b", "1.10.0", "2-1-1", "99999999999999999999", "1:0.1", "2:0")
	all[14] = append(all[14], all[15]...) // 1.10 and 1.10-0
	all = append(all[:15], all[16:]...)
	checkOrder(t, compareDeb, all)
}

// dpkg is asked about all pairs.
func TestDebianVersionsAreOrderedAsDpkgDoes(t *testing.T) {
	dpkg, err := exec.LookPath("dpkg")
	if err != nil {
		t.Skip("this machine has no dpkg")
	}
	versions := []string{"0", "0~", "1.0", "1.0~~", "1.0~~a", "1.0~", "1.0a", "1.0+", "1.0.", "1.0-1", "1.0-1~", "1.0-1.1", "1:0", "00:1.0", "1.2.3~dev.3", "1.2.3~dev.10", "1.2.3-1", "1.a", "1.~", "1A", "1a", "1+a", "1.01"}
	for _, a := range versions {
		for _, b := range versions {
			op := map[int]string{-1: "lt", 0: "eq", 1: "gt"}[compareDeb(a, b)]
			if err := exec.Command(dpkg, "--force-bad-version", "--compare-versions", a, op, b).Run(); err != nil {
				t.Errorf("dpkg: not %s %s %s", a, op, b)
			}
		}
	}
}

// The cases are those that rpm's own description of its comparison names.
func TestRPMVersionsAreOrdered(t *testing.T) {
	checkOrder(t, compareRPM, ascending("1.10^", "1.10^git1", "1.10^git2", "1.10.0", "2.0-1", "2.0-1.el9", "2.0-2", "2.0.a 2.0a 2.0_a", "2.0.1", "99999999999999999999", "1:0.1-1", "2:0-1"))
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"5.5p1", "5.5p2", -1}, {"5.5p10", "5.5p1", 1}, {"10xyz", "10.1xyz", -1}, {"xyz10", "xyz10.1", -1}, {"xyz.4", "8", -1}, {"xyz.4", "2", -1},
		{"5.6p", "5.6", 1}, {"1.0^", "1.0^git1", -1}, {"1.0~rc1^git1", "1.0~rc1", 1}, {"1.0^git1~pre", "1.0^git1", -1}, {"2_0", "2.0", 0}, {"a+", "a", 0}, {"+_", "_+", 0}, {"1.0-", "1.0", 0},
	} {
		if got := compareRPM(c.a, c.b); got != c.want {
			t.Errorf("%s, %s: %d", c.a, c.b, got)
		}
		if got := compareRPM(c.b, c.a); got != -c.want {
			t.Errorf("%s, %s: %d", c.b, c.a, got)
		}
	}
}

// FuzzVersions: an order has two directions, and what is equal compares alike.
func FuzzVersions(f *testing.F) {
	f.Add("1.0~rc1-1", "1:1.0-1", "2")
	f.Add("1.0^git", "1.0", "1.0a")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		for name, compare := range map[string]func(a, b string) int{"deb": compareDeb, "rpm": compareRPM} {
			ab, ba := compare(a, b), compare(b, a)
			if ab != -ba || compare(a, a) != 0 {
				t.Errorf("%s: %q, %q: %d and %d", name, a, b, ab, ba)
			}
			if ab <= 0 && compare(b, c) <= 0 && compare(a, c) > 0 {
				t.Errorf("%s: %q, %q, %q are no order", name, a, b, c)
			}
		}
	})
}
