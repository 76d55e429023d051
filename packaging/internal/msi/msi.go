package msi

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Database is what a .msi has in its tables.
type Database struct {
	Summary Summary
	Tables  []Table // any order; writing sorts them and their rows
}

// Table is a table with its rows.
type Table struct {
	Name    string
	Columns []Column
	Rows    [][]any // cells: string, int, or nil for null; "" is null, too
}

// Column is a column of a table.
type Column struct {
	Name string
	// Type is that of the text archives of Windows Installer: s72 a string of at most 72 characters, l0 a string of any length that
	// may be translated, i2 and i4 integers of two and four bytes, v0 a stream; in capitals, null is allowed.
	Type string
	Key  bool
}

// Stream is a stream of the compound file.
type Stream struct {
	Name string
	Data []byte
}

// ErrFormat: the streams are not those of a database, or of a damaged one.
var ErrFormat = errors.New("not a sound installer database")

// Bits of a column's type.
const (
	typeValid    = 0x0100
	typeLocal    = 0x0200
	typeNoStream = 0x0400 // of strings and short integers
	typeText     = 0x0800 // of strings and streams
	typeNull     = 0x1000
	typeKey      = 0x2000
	widthMask    = 0xff
)

// Columns reads definitions as "Property s72 key, Value l0", which come from our own source: it panics on a mistake in one.
func Columns(text string) []Column {
	var list []Column
	for one := range strings.SplitSeq(text, ",") {
		words := strings.Fields(one)
		c := Column{Name: words[0], Type: words[1], Key: len(words) == 3 && words[2] == "key"}
		if _, err := c.code(); err != nil {
			panic(err)
		}
		list = append(list, c)
	}
	return list
}

// code is the type as the database has it.
func (c Column) code() (uint16, error) {
	bad := fmt.Errorf("column %s has the unknown type %q", c.Name, c.Type)
	if c.Type == "" {
		return 0, bad
	}
	width, err := strconv.ParseUint(c.Type[1:], 10, 8)
	if err != nil {
		return 0, bad
	}
	code := typeValid | uint16(width)
	switch kind := c.Type[0]; kind | 0x20 {
	case 's':
		code |= typeText | typeNoStream
	case 'l':
		code |= typeText | typeNoStream | typeLocal
	case 'i':
		switch width {
		case 2:
			code |= typeNoStream
		case 4:
		default:
			return 0, bad
		}
	case 'v':
		code |= typeText
	default:
		return 0, bad
	}
	if c.Type[0] < 'a' {
		code |= typeNull
	}
	if c.Key {
		code |= typeKey
	}
	return code, nil
}

// column is the inverse of code.
func column(name string, code uint16) (Column, error) {
	width := code & widthMask
	kind := byte('i')
	switch {
	case code&typeText != 0 && code&typeNoStream == 0:
		kind = 'v'
	case code&typeText != 0 && code&typeLocal != 0:
		kind = 'l'
	case code&typeText != 0:
		kind = 's'
	case width != 2 && width != 4:
		return Column{}, fmt.Errorf("%w: column %s is a number of %d bytes", ErrFormat, name, width)
	}
	if code&typeNull != 0 {
		kind &^= 0x20
	}
	return Column{Name: name, Type: string(kind) + strconv.Itoa(int(width)), Key: code&typeKey != 0}, nil
}

func (c Column) text() bool { return c.Type[0]|0x20 == 's' || c.Type[0]|0x20 == 'l' }
func (c Column) long() bool { return c.Type[0]|0x20 == 'i' && c.Type[1:] == "4" }

// Table returns a table by its name.
func (d *Database) Table(name string) (Table, bool) {
	i := slices.IndexFunc(d.Tables, func(t Table) bool { return t.Name == name })
	if i < 0 {
		return Table{}, false
	}
	return d.Tables[i], true
}

// Cell returns a cell of a row by its column's name, nil for one that is not there.
func (t Table) Cell(row []any, name string) any {
	i := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == name })
	if i < 0 || i >= len(row) {
		return nil
	}
	return row[i]
}

// Text returns a cell that is a string, "" for any other.
func (t Table) Text(row []any, name string) string {
	text, _ := t.Cell(row, name).(string)
	return text
}

// Int returns a cell that is a number, 0 for any other.
func (t Table) Int(row []any, name string) int {
	n, _ := t.Cell(row, name).(int)
	return n
}

// The order of the characters that two share a unit of a stream's name.
const nameAlphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._"

// Units of stream names.
const (
	pairBase   = 0x3800
	singleBase = 0x4800
	tableMark  = 0x4840
	alphabet   = len(nameAlphabet)
)

// streamName squeezes a name into the 31 units of a compound file.
func streamName(name string, table bool) string {
	var out []rune
	if table {
		out = append(out, tableMark)
	}
	runes := []rune(name)
	for i := 0; i < len(runes); i++ {
		first := strings.IndexRune(nameAlphabet, runes[i])
		if first < 0 {
			out = append(out, runes[i])
			continue
		}
		second := -1
		if i+1 < len(runes) {
			second = strings.IndexRune(nameAlphabet, runes[i+1])
		}
		if second < 0 {
			out = append(out, rune(singleBase+first))
			continue
		}
		out = append(out, rune(pairBase+first+alphabet*second))
		i++
	}
	return string(out)
}

// StreamName is the name of a stream that is no table, such as a cabinet, in the compound file.
func StreamName(name string) string { return streamName(name, false) }

// PlainName is the name that StreamName made, or that of a table's stream.
func PlainName(stream string) string {
	var out strings.Builder
	for i, r := range []rune(stream) {
		switch {
		case r == tableMark && i == 0:
		case r >= pairBase && r < singleBase:
			pair := int(r - pairBase)
			out.WriteByte(nameAlphabet[pair%alphabet])
			out.WriteByte(nameAlphabet[pair/alphabet])
		case r >= singleBase && r < tableMark:
			out.WriteByte(nameAlphabet[r-singleBase])
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}

// catalog are the tables that describe the others.
func catalog() (tables, columns Table) {
	return Table{Name: "_Tables", Columns: Columns("Name s64 key")},
		Table{Name: "_Columns", Columns: Columns("Table s64 key, Number i2 key, Name s64, Type i2")}
}

func byName(a, b Table) int { return cmp.Compare(a.Name, b.Name) }
