package msi

import (
	"errors"
	"maps"
	"reflect"
	"testing"
	"time"
	"unicode/utf16"
)

func sample() *Database {
	return &Database{
		Summary: Summary{Title: "Installation Database", Subject: "agent 1.2.3", Author: "authors", Template: "x64;1033",
			PackageCode: "{00000000-0000-0000-0000-000000000001}", Created: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
			Schema: 500, WordCount: 2, Program: "packager", Security: 2},
		Tables: []Table{
			{Name: "Property", Columns: Columns("Property s72 key, Value l0"), Rows: [][]any{{"Zeta", "same"}, {"Alpha", "same"}}},
			{Name: "File", Columns: Columns("File s72 key, FileSize i4, Attributes I2, Sequence i4, Version S72"),
				Rows: [][]any{{"agent", 70000, nil, 2, nil}, {"daemon", -5, 512, 1, "x"}, {"zero", 0, -1, 3, ""}}},
			{Name: "Pair", Columns: Columns("A s72 key, B i2 key"), Rows: [][]any{{"b", 1}, {"a", 2}, {"a", 1}}},
			{Name: "Empty", Columns: Columns("A s72 key")},
		},
	}
}

// opener gives streams as a compound file would.
func opener(streams []Stream) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		for _, s := range streams {
			if s.Name == name {
				return s.Data, nil
			}
		}
		return nil, nil
	}
}

func TestRoundTrip(t *testing.T) {
	d := sample()
	streams, err := d.Streams()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(opener(streams))
	if err != nil {
		t.Fatal(err)
	}
	if got.Summary != d.Summary {
		t.Errorf("summary %+v", got.Summary)
	}
	want := map[string][][]any{ // sorted by keys; "" is null
		"Property": {{"Alpha", "same"}, {"Zeta", "same"}},
		"File":     {{"agent", 70000, nil, 2, nil}, {"daemon", -5, 512, 1, "x"}, {"zero", 0, -1, 3, nil}},
		"Pair":     {{"a", 1}, {"a", 2}, {"b", 1}},
		"Empty":    {},
	}
	if len(got.Tables) != len(want) {
		t.Errorf("%d tables", len(got.Tables))
	}
	for name, rows := range want {
		table, ok := got.Table(name)
		if !ok || !reflect.DeepEqual(table.Rows, rows) {
			t.Errorf("%s: %v, want %v", name, table.Rows, rows)
		}
		before, _ := d.Table(name)
		if !reflect.DeepEqual(table.Columns, before.Columns) {
			t.Errorf("%s: columns %v, want %v", name, table.Columns, before.Columns)
		}
	}
	file, _ := got.Table("File")
	if file.Text(file.Rows[1], "Version") != "x" || file.Int(file.Rows[0], "FileSize") != 70000 || file.Cell(file.Rows[0], "none") != nil {
		t.Error("cells are not found by name")
	}
	again, err := got.Streams()
	if err != nil || !reflect.DeepEqual(again, streams) {
		t.Errorf("written again: other bytes, %v", err)
	}
}

// TestTextBeyondASCII is UTF-8, and says so.
func TestTextBeyondASCII(t *testing.T) {
	d := sample()
	d.Tables[0].Rows[0][1] = "构建机"
	streams, err := d.Streams()
	if err != nil {
		t.Fatal(err)
	}
	if page := streams[0].Data[:2]; page[0] != 0xe9 || page[1] != 0xfd {
		t.Errorf("code page % x", page)
	}
	got, err := Read(opener(streams))
	if err != nil {
		t.Fatal(err)
	}
	if p, _ := got.Table("Property"); p.Text(p.Rows[1], "Value") != "构建机" {
		t.Errorf("%v", p.Rows)
	}
}

func TestTypesOfColumns(t *testing.T) {
	for text, want := range map[string]uint16{ // as Windows Installer has them
		"X s72 key": 0x2d48, "X s72": 0x0d48, "X S72": 0x1d48, "X s255": 0x0dff, "X l255": 0x0fff, "X L255": 0x1fff, "X s0": 0x0d00,
		"X l0": 0x0f00, "X i2": 0x0502, "X I2": 0x1502, "X i4": 0x0104, "X I4": 0x1104, "X v0": 0x0900, "X S255 key": 0x3dff, "X i4 key": 0x2104,
	} {
		c := Columns(text)[0]
		code, err := c.code()
		if err != nil || code != want {
			t.Errorf("%s: %#x, want %#x; %v", text, code, want, err)
		}
		if back, err := column("X", code); err != nil || back != c {
			t.Errorf("%s: read as %+v, %v", text, back, err)
		}
	}
	for _, bad := range []Column{{Name: "X"}, {Name: "X", Type: "i3"}, {Name: "X", Type: "q2"}, {Name: "X", Type: "s999"}} {
		if _, err := bad.code(); err == nil {
			t.Errorf("%+v has a code", bad)
		}
	}
}

func TestStreamNames(t *testing.T) {
	for name, units := range map[string][]uint16{ // read out of a database of msitools
		"_Tables":       {0x4840, 0x3f7f, 0x4164, 0x422f, 0x4836},
		"_StringPool":   {0x4840, 0x3f3f, 0x4577, 0x446c, 0x3e6a, 0x44b2, 0x482f},
		"MsiFileHash":   nil, // by the way back alone
		"agent.cab":     nil,
		"a":             nil,
		"with a blank!": nil,
	} {
		got := streamName(name, units != nil)
		if PlainName(got) != name {
			t.Errorf("%s: comes back as %q", name, PlainName(got))
		}
		if units != nil {
			if have := utf16.Encode([]rune(got)); !reflect.DeepEqual(have, units) {
				t.Errorf("%s: %#x, want %#x", name, have, units)
			}
		}
	}
	if StreamName("agent.cab") == "agent.cab" {
		t.Error("not squeezed")
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, table := range map[string]Table{
		"a null that must not be": {Name: "T", Columns: Columns("A s72 key"), Rows: [][]any{{nil}}},
		"an empty string":         {Name: "T", Columns: Columns("A s72 key"), Rows: [][]any{{""}}},
		"a long string":           {Name: "T", Columns: Columns("A s3 key"), Rows: [][]any{{"four"}}},
		"a string as number":      {Name: "T", Columns: Columns("A i2 key"), Rows: [][]any{{"1"}}},
		"a number as string":      {Name: "T", Columns: Columns("A s72 key"), Rows: [][]any{{1}}},
		"a number too big":        {Name: "T", Columns: Columns("A i2 key"), Rows: [][]any{{32768}}},
		"a cell too few":          {Name: "T", Columns: Columns("A i2 key, B i2"), Rows: [][]any{{1}}},
		"a key twice":             {Name: "T", Columns: Columns("A i2 key, B i2"), Rows: [][]any{{1, 1}, {1, 2}}},
		"some other value":        {Name: "T", Columns: Columns("A i2 key"), Rows: [][]any{{1.5}}},
		"no columns":              {Name: "T"},
	} {
		if _, err := (&Database{Tables: []Table{table}}).Streams(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	double := Table{Name: "T", Columns: Columns("A i2 key")}
	if _, err := (&Database{Tables: []Table{double, double}}).Streams(); err == nil {
		t.Error("two tables of one name: accepted")
	}
}

// TestDamageIsAnError and no panic, in any of the streams.
func TestDamageIsAnError(t *testing.T) {
	streams, err := sample().Streams()
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for n, s := range streams {
		for i := range s.Data {
			for _, flip := range []byte{0xff, 1} {
				bad := append([]Stream(nil), streams...)
				bad[n].Data = append([]byte(nil), s.Data...)
				bad[n].Data[i] ^= flip
				if _, err := Read(opener(bad)); err != nil {
					refused++
					if !errors.Is(err, ErrFormat) {
						t.Fatal(err)
					}
				}
			}
		}
		bad := append([]Stream(nil), streams...)
		bad[n].Data = s.Data[:len(s.Data)-1]
		if _, err := Read(opener(bad)); err == nil && PlainName(s.Name) != summaryStream {
			t.Errorf("%s is cut unseen", PlainName(s.Name))
		}
	}
	if refused < 200 {
		t.Errorf("only %d damaged databases were refused", refused)
	}
	broken := errors.New("disk error")
	if _, err := Read(func(string) ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

func FuzzRead(f *testing.F) {
	streams, err := sample().Streams()
	if err != nil {
		f.Fatal(err)
	}
	sorted := map[string][]byte{}
	for _, s := range streams {
		sorted[PlainName(s.Name)] = s.Data
	}
	names := []string{"_StringPool", "_StringData", "_Tables", "_Columns", "Property", summaryStream}
	f.Add(sorted[names[0]], sorted[names[1]], sorted[names[2]], sorted[names[3]], sorted[names[4]], sorted[names[5]])
	f.Fuzz(func(t *testing.T, pool, data, tables, columns, property, summary []byte) {
		have := maps.Clone(sorted)
		for i, b := range [][]byte{pool, data, tables, columns, property, summary} {
			have[names[i]] = b
		}
		d, err := Read(func(name string) ([]byte, error) { return have[PlainName(name)], nil })
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		for _, table := range d.Tables {
			for _, row := range table.Rows {
				if len(row) != len(table.Columns) {
					t.Fatalf("%s: %v", table.Name, row)
				}
			}
		}
	})
}
