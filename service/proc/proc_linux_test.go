package proc

import "testing"

func TestStatWithAnyName(t *testing.T) {
	it, ok := parseStat(7, []byte("7 (a) Z (b)) S 1 5 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2\n"))
	if !ok || it.ppid != 1 || it.group != 5 || it.at != 4242 || it.zombie {
		t.Errorf("%+v %v", it, ok)
	}
	for _, bad := range []string{"", "7 (a", "7 (a) S", "7 (a) S x y z 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"} {
		if _, ok := parseStat(7, []byte(bad)); ok {
			t.Errorf("%q was understood", bad)
		}
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("7 (a) Z (b)) S 1 5 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if it, ok := parseStat(7, raw); ok && it.pid != 7 {
			t.Errorf("%+v", it)
		}
	})
}
