package metrics

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func at() time.Time { return time.Unix(1700000000, 5).UTC() }

func TestJSONIsTelegrafs(t *testing.T) {
	data, err := JSON([]Metric{
		{Name: "mem", Time: at(), Tags: map[string]string{"hostIp": "10.0.0.1"}, Fields: map[string]any{"total": uint64(math.MaxUint64), "used_percent": 1.5, "bad": math.NaN()}},
		{Name: "empty", Time: at(), Fields: map[string]any{"bad": math.Inf(1)}},
		{Name: "no tags", Time: at(), Fields: map[string]any{"a": int64(-1), "b": true, "c": "x"}},
	})
	want := `{"metrics":[{"fields":{"total":18446744073709551615,"used_percent":1.5},"name":"mem","tags":{"hostIp":"10.0.0.1"},"timestamp":1700000000},` +
		`{"fields":{"a":-1,"b":true,"c":"x"},"name":"no tags","tags":{},"timestamp":1700000000}]}`
	if err != nil || string(data) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, data, want)
	}
	if data, err := JSON(nil); err != nil || string(data) != `{"metrics":[]}` {
		t.Errorf("nothing: %s, %v", data, err)
	}
}

func TestLinesAreInfluxs(t *testing.T) {
	for want, m := range map[string]Metric{
		"disk,agentId=a,path=C:\\\\x\\ y free=1i,used=2.5 1700000000000000005\n": {
			Name: "disk", Tags: map[string]string{"path": `C:\x y`, "agentId": "a", "empty": "", "": "x"}, Fields: map[string]any{"used": 2.5, "free": int64(1)}},
		"a\\,b\\ c,k\\=1=v\\,2 f\\ 1=9223372036854775807i 1700000000000000005\n": {
			Name: "a,b c", Tags: map[string]string{"k=1": "v,2"}, Fields: map[string]any{"f 1": uint64(math.MaxUint64)}},
		"s,t=x t=\"q\\\"\\\\ z\",u=true 1700000000000000005\n": {
			Name: "s", Tags: map[string]string{"t": `x\`}, Fields: map[string]any{"t": "q\"\\\nz", "u": true, "nan": math.NaN(), "odd": []int{1}}},
		"": {Name: "nothing", Tags: map[string]string{"a": "b"}, Fields: map[string]any{"x": math.Inf(-1)}},
	} {
		m.Time = at()
		want = strings.ReplaceAll(want, `C:\\x`, `C:\x`)
		if got := string(Lines([]Metric{m})); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

func TestMappedNames(t *testing.T) {
	in := []Metric{{Name: "cpu"}, {Name: "diskio"}, {Name: "mem"},
		{Name: "system", Fields: map[string]any{"load1": 1.0, "load15": 2.0, "uptime": int64(3)}},
		{Name: "system", Fields: map[string]any{"uptime": int64(3)}}}
	var names []string
	out := Mapped(in)
	for _, m := range out {
		names = append(names, m.Name)
	}
	if want := []string{"cpu_detail", "io", "mem", "load", "env", "env"}; !reflect.DeepEqual(names, want) {
		t.Fatalf("%q, want %q", names, want)
	}
	if !reflect.DeepEqual(out[3].Fields, map[string]any{"load1": 1.0, "load15": 2.0}) || !reflect.DeepEqual(out[4].Fields, map[string]any{"uptime": int64(3)}) {
		t.Errorf("load %v, env %v", out[3].Fields, out[4].Fields)
	}
	if in[0].Name != "cpu" {
		t.Error("Mapped changed its argument")
	}
}

// readLine takes one line of line protocol apart again, by the rules of the format and not by those of our encoder.
func readLine(line string) (name string, tags, fields map[string]string, stamp string, ok bool) {
	cut := func(s, stops string) (word, rest string, stop byte) {
		var b strings.Builder
		for i := 0; i < len(s); i++ {
			if s[i] == '\\' && i+1 < len(s) && strings.IndexByte(",= ", s[i+1]) >= 0 {
				i++
			} else if strings.IndexByte(stops, s[i]) >= 0 {
				return b.String(), s[i+1:], s[i]
			}
			b.WriteByte(s[i])
		}
		return b.String(), "", 0
	}
	tags, fields = map[string]string{}, map[string]string{}
	name, rest, stop := cut(line, ", ")
	for stop == ',' {
		var key, val string
		if key, rest, stop = cut(rest, "="); stop == 0 {
			return
		}
		val, rest, stop = cut(rest, ", ")
		tags[key] = val
	}
	for {
		var key string
		if key, rest, stop = cut(rest, "="); stop == 0 {
			return
		}
		end := 0
		if strings.HasPrefix(rest, `"`) {
			for end = 1; end < len(rest) && rest[end] != '"'; end++ {
				if rest[end] == '\\' {
					end++
				}
			}
			end++
		} else {
			for end < len(rest) && rest[end] != ',' && rest[end] != ' ' {
				end++
			}
		}
		if end >= len(rest) {
			return
		}
		fields[key] = rest[:end]
		stop, rest = rest[end], rest[end+1:]
		if stop == ' ' {
			return name, tags, fields, rest, true
		}
	}
}

func FuzzLines(f *testing.F) {
	f.Add("disk", "path", `C:\dir name\`, "label", "a \"b\"\\\n", 1.5)
	f.Add("a,b", "k=", `\,x`, "f ", "", math.Inf(1))
	f.Fuzz(func(t *testing.T, name, tag, val, field, text string, number float64) {
		m := Metric{Name: name, Time: at(), Tags: map[string]string{tag: val}, Fields: map[string]any{field: text, field + "n": number}}
		out := Lines([]Metric{m})
		if len(out) == 0 {
			return
		}
		if bytes.Count(out, []byte("\n")) != 1 || !bytes.HasSuffix(out, []byte("\n")) || bytes.ContainsAny(out, "\r") {
			t.Fatalf("not one line: %q", out)
		}
		gotName, tags, fields, stamp, ok := readLine(strings.TrimSuffix(string(out), "\n"))
		if !ok || stamp != strconv.FormatInt(at().UnixNano(), 10) {
			t.Fatalf("cannot be read back: %q", out)
		}
		plain := func(s string) bool { return utf8.ValidString(s) && !strings.ContainsAny(s, "\\\n\r\x00") }
		if plain(name) && gotName != name {
			t.Errorf("name %q became %q", name, gotName)
		}
		if plain(tag) && plain(val) && tag != "" && val != "" && tags[tag] != val {
			t.Errorf("tag %q=%q became %q", tag, val, tags)
		}
		if plain(field) && plain(text) && !strings.Contains(text, `"`) && field != "" && fields[field] != `"`+text+`"` {
			t.Errorf("field %q=%q became %q", field, text, fields)
		}
		if len(tags) > 1 || len(fields) > 2 {
			t.Errorf("something was smuggled in: %q", out)
		}
		if data, err := JSON([]Metric{m}); err != nil || !json.Valid(data) {
			t.Errorf("JSON: %s, %v", data, err)
		}
	})
}
