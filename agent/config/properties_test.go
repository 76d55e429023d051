package config

import "testing"

func TestPropertiesReadAsOriginalsDo(t *testing.T) {
	for line, want := range map[string]string{
		"k=v": "v", "k = v ": "v", "  k\t=\tv\r": "v", "k=": "", "k: v": "v", "k=a=b:c": "a=b:c",
		`k="v"`: "v", "k='v w'": "v w", "k=`v # w`": "v # w", `k=""`: "", `k="a" "b"`: `"a" "b"`, `k="`: `"`,
		"k=v # comment": "v", "k=v\t; comment": "v", "k=# comment": "", "k=a#b;c": "a#b;c", `k="v" # c`: "v",
		`k=C:\jdk\`: `C:\jdk\`, `k=a\nb`: `a\nb`, "k=äö 字": "äö 字",
	} {
		p := parseProperties(line + "\nother=1\n")
		if got, n := p.get("k"); got != want || n != 1 {
			t.Errorf("%q: %q in line %d, want %q", line, got, n, want)
		}
		if got, _ := p.get("other"); got != "1" {
			t.Errorf("%q swallowed the next line", line)
		}
	}
	for _, line := range []string{"", "#k=v", " ; k=v", "[k=v]", "k", "=v"} {
		if _, n := parseProperties(line).get("k"); n != 0 {
			t.Errorf("%q counts as a line for k", line)
		}
	}
}

func TestTheLastOfSeveralLinesWins(t *testing.T) {
	p := parseProperties("\ufeffk=1\n# note\nk=2\n")
	if got, n := p.get("k"); got != "2" || n != 3 {
		t.Errorf("%q in line %d", got, n)
	}
	if changed, err := p.set("k", "3"); !changed || err != nil {
		t.Error(changed, err)
	}
	if got, want := p.String(), "\ufeffk=1\n# note\nk=3\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if !p.remove("k") || p.remove("k") || p.String() != "\ufeff# note\n" {
		t.Errorf("removed: %q", p)
	}
}

func TestSetTouchesOneLineOnly(t *testing.T) {
	const before = "# mine\r\n\r\nk = old # why\r\nunknown=x\r\nlast=y"
	p := parseProperties(before)
	if changed, err := p.set("k", "old"); changed || err != nil || p.String() != before {
		t.Errorf("set to the same: %v, %v, %q", changed, err, p)
	}
	if _, err := p.set("k", "new"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.set("fresh", "1"); err != nil {
		t.Fatal(err)
	}
	if got, want := p.String(), "# mine\r\n\r\nk=new # why\r\nunknown=x\r\nlast=y\r\nfresh=1\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestSetRefusesWhatWouldNotComeBack(t *testing.T) {
	for _, val := range []string{"a\nb", "a\rb", "a\x00b", "a\tb\x7f", " a", "a ", `"a"`, "'a'", "`a`", "a # b", "a#b", "a;b", `a\`, "\ufffd"} {
		p := parseProperties("k=1\n")
		if changed, err := p.set("k", val); err == nil || changed || p.String() != "k=1\n" {
			t.Errorf("%q: %v, %v, %q", val, changed, err, p)
		}
	}
}

func FuzzProperties(f *testing.F) {
	f.Add("devops.agent.id=abc\r\n# comment\n\nlandun.gateway = \"http://x\" ; note", "landun.gateway", "http://y")
	f.Fuzz(func(t *testing.T, text, key, val string) {
		p := parseProperties(text)
		if p.String() != text {
			t.Fatalf("rendered %q", p)
		}
		others := map[string]string{}
		for _, l := range p.lines {
			if l.pair {
				others[l.key], _ = p.get(l.key)
			}
		}
		if probe := parseProperties(key + "=1\n"); len(probe.lines) != 1 || !probe.lines[0].pair || probe.lines[0].key != key || probe.mark != "" {
			return // no key
		}
		delete(others, key)
		changed, err := p.set(key, val)
		if err != nil {
			if p.String() != text {
				t.Fatalf("refused, and yet it is %q", p)
			}
			return
		}
		if changed == (p.String() == text) {
			t.Errorf("changed = %v: %q", changed, p)
		}
		again := parseProperties(p.String())
		if got, _ := again.get(key); got != val {
			t.Errorf("set %q, got %q from %q", val, got, p)
		}
		for k, want := range others {
			if got, _ := again.get(k); got != want {
				t.Errorf("%q was %q and is %q in %q", k, want, got, p)
			}
		}
	})
}
