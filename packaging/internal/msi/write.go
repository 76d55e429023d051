package msi

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// Code pages of strings.
const (
	western = 1252
	utf8    = 65001
)

// Streams are the streams of the database, without those of files. The bytes depend on nothing but d.
func (d *Database) Streams() ([]Stream, error) {
	all := slices.Clone(d.Tables)
	slices.SortFunc(all, byName)
	tables, columns := catalog()
	for i, t := range all {
		if i > 0 && all[i-1].Name == t.Name {
			return nil, fmt.Errorf("two tables are named %s", t.Name)
		}
		if err := t.check(); err != nil {
			return nil, fmt.Errorf("table %s: %w", t.Name, err)
		}
		tables.Rows = append(tables.Rows, []any{t.Name})
		for n, c := range t.Columns {
			code, err := c.code()
			if err != nil {
				return nil, fmt.Errorf("table %s: %w", t.Name, err)
			}
			columns.Rows = append(columns.Rows, []any{t.Name, n + 1, c.Name, int(code)})
		}
	}
	all = append(all, tables, columns)
	p, err := newPool(all)
	if err != nil {
		return nil, err
	}
	pool, data := p.bytes()
	streams := []Stream{{streamName("_StringPool", true), pool}, {streamName("_StringData", true), data}}
	for _, t := range all {
		if len(t.Rows) == 0 { // a table without rows has no stream
			continue
		}
		b, err := t.bytes(p)
		if err != nil {
			return nil, fmt.Errorf("table %s: %w", t.Name, err)
		}
		streams = append(streams, Stream{streamName(t.Name, true), b})
	}
	summary, err := d.Summary.bytes()
	if err != nil {
		return nil, err
	}
	return append(streams, Stream{summaryStream, summary}), nil
}

// check holds the rows against the columns: types, nulls, widths, keys.
func (t Table) check() error {
	if t.Name == "" || len(t.Columns) == 0 || len(t.Columns) > 32 {
		return fmt.Errorf("%d columns", len(t.Columns))
	}
	keys := map[string]bool{}
	for _, row := range t.Rows {
		if len(row) != len(t.Columns) {
			return fmt.Errorf("row %v has %d cells, want %d", row, len(row), len(t.Columns))
		}
		key := ""
		for i, c := range t.Columns {
			if err := c.check(row[i]); err != nil {
				return fmt.Errorf("row %v: %w", row, err)
			}
			if c.Key {
				key += fmt.Sprintf("%q ", fmt.Sprint(row[i]))
			}
		}
		if keys[key] {
			return fmt.Errorf("two rows have the key %s", key)
		}
		keys[key] = true
	}
	return nil
}

func (c Column) check(cell any) error {
	null := c.Type[0] < 'a'
	switch v := cell.(type) {
	case nil:
		if !null {
			return fmt.Errorf("%s must not be null", c.Name)
		}
	case string:
		width := 0
		if _, err := fmt.Sscan(c.Type[1:], &width); err != nil {
			return err
		}
		switch {
		case !c.text():
			return fmt.Errorf("%s is no string", c.Name)
		case v == "" && !null:
			return fmt.Errorf("%s must not be null", c.Name)
		case width > 0 && len(v) > width || len(v) > math.MaxUint16:
			return fmt.Errorf("%s has %d bytes, want at most %d", c.Name, len(v), width)
		}
	case int:
		least, most := -math.MaxInt16, math.MaxInt16
		if c.long() {
			least, most = -math.MaxInt32, math.MaxInt32
		}
		if c.text() || v < least || v > most {
			return fmt.Errorf("%s cannot be %d", c.Name, v)
		}
	default:
		return fmt.Errorf("%s cannot be a %T", c.Name, cell)
	}
	return nil
}

// bytes is the stream of a table: all cells of the first column, then all of the second. Rows are sorted by the numbers
// of their keys, which Windows Installer searches by halves.
func (t Table) bytes(p *pool) ([]byte, error) {
	rows := make([][]uint32, len(t.Rows))
	for i, row := range t.Rows {
		rows[i] = make([]uint32, len(row))
		for n, cell := range row {
			rows[i][n] = t.Columns[n].number(cell, p)
		}
	}
	slices.SortFunc(rows, func(a, b []uint32) int {
		for n, c := range t.Columns {
			if order := cmp.Compare(a[n], b[n]); c.Key && order != 0 {
				return order
			}
		}
		return 0
	})
	var b []byte
	for n, c := range t.Columns {
		for _, row := range rows {
			if c.long() {
				b = binary.LittleEndian.AppendUint32(b, row[n])
			} else {
				b = binary.LittleEndian.AppendUint16(b, uint16(row[n]))
			}
		}
	}
	return b, nil
}

// number is a cell as it is stored: the id of a string, a number with its sign turned; 0 is null.
func (c Column) number(cell any, p *pool) uint32 {
	switch v := cell.(type) {
	case string:
		return uint32(p.ids[v])
	case int:
		if c.long() {
			return uint32(v) + 1<<31
		}
		return uint32(v+1<<15) & 0xffff
	}
	return 0
}

// pool is every string of the database once, with the number of its uses. Ids follow the order of the texts.
type pool struct {
	texts []string
	uses  map[string]int
	ids   map[string]int
}

func newPool(tables []Table) (*pool, error) {
	p := &pool{uses: map[string]int{}, ids: map[string]int{}}
	for _, t := range tables {
		for _, row := range t.Rows {
			for _, cell := range row {
				if text, ok := cell.(string); ok && text != "" {
					p.uses[text]++
				}
			}
		}
	}
	for text, n := range p.uses {
		p.texts = append(p.texts, text)
		if n > math.MaxUint16 {
			return nil, fmt.Errorf("%q is used %d times", text, n)
		}
	}
	if len(p.texts) >= math.MaxUint16 {
		return nil, fmt.Errorf("%d strings: want less than %d", len(p.texts), math.MaxUint16)
	}
	slices.Sort(p.texts)
	for i, text := range p.texts {
		p.ids[text] = i + 1
	}
	return p, nil
}

func (p *pool) bytes() (pool, data []byte) {
	for _, text := range p.texts {
		data = append(data, text...)
	}
	page := uint16(western)
	if slices.ContainsFunc(data, func(c byte) bool { return c >= 0x80 }) {
		page = utf8
	}
	le := binary.LittleEndian
	pool = le.AppendUint16(le.AppendUint16(nil, page), 0) // ids of two bytes
	for _, text := range p.texts {
		pool = le.AppendUint16(pool, uint16(len(text)))
		pool = le.AppendUint16(pool, uint16(p.uses[text]))
	}
	return pool, data
}
