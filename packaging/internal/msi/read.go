package msi

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Limits of what is read.
const (
	mostTables  = 1000
	mostColumns = 32
	mostRows    = 1 << 17
)

// Read reads a database. open gives a stream of the compound file by its name, and nil for one that is not there. Errors are those of
// open, or wrap ErrFormat.
func Read(open func(name string) ([]byte, error)) (*Database, error) {
	p, err := openPool(open)
	if err != nil {
		return nil, err
	}
	tables, columns := catalog()
	for _, t := range []*Table{&tables, &columns} {
		if err := t.read(open, p); err != nil {
			return nil, err
		}
	}
	if len(tables.Rows) > mostTables {
		return nil, fmt.Errorf("%w: %d tables", ErrFormat, len(tables.Rows))
	}
	d := &Database{}
	at := map[string]int{}
	for _, row := range tables.Rows {
		name, _ := row[0].(string)
		if _, twice := at[name]; twice || name == "" {
			return nil, fmt.Errorf("%w: table %q", ErrFormat, name)
		}
		at[name] = len(d.Tables)
		d.Tables = append(d.Tables, Table{Name: name})
	}
	slices.SortStableFunc(columns.Rows, func(a, b []any) int { // by number: the rows are sorted by the ids of the tables' names
		return columns.Int(a, "Number") - columns.Int(b, "Number")
	})
	for _, row := range columns.Rows {
		i, ok := at[columns.Text(row, "Table")]
		code, isNumber := columns.Cell(row, "Type").(int)
		if !ok || !isNumber {
			return nil, fmt.Errorf("%w: column %v of no table", ErrFormat, row)
		}
		t := &d.Tables[i]
		c, err := column(columns.Text(row, "Name"), uint16(code))
		if err != nil {
			return nil, err
		}
		if len(t.Columns) == mostColumns || columns.Int(row, "Number") != len(t.Columns)+1 {
			return nil, fmt.Errorf("%w: columns of table %s", ErrFormat, t.Name)
		}
		t.Columns = append(t.Columns, c)
	}
	for i := range d.Tables {
		if err := d.Tables[i].read(open, p); err != nil {
			return nil, err
		}
	}
	b, err := open(summaryStream)
	if err != nil {
		return nil, err
	}
	d.Summary, err = readSummary(b)
	return d, err
}

// strings is the pool that is read.
type openedPool struct {
	texts []string // by id
	wide  bool     // ids of three bytes
}

func openPool(open func(name string) ([]byte, error)) (*openedPool, error) {
	pool, err := open(streamName("_StringPool", true))
	if err != nil {
		return nil, err
	}
	data, err := open(streamName("_StringData", true))
	if err != nil {
		return nil, err
	}
	if len(pool) < 4 || len(pool)%4 != 0 {
		return nil, fmt.Errorf("%w: string pool of %d bytes", ErrFormat, len(pool))
	}
	le := binary.LittleEndian
	p := &openedPool{texts: []string{""}, wide: le.Uint16(pool[2:])&0x8000 != 0}
	for at := 4; at < len(pool); at += 4 {
		size, uses := int64(le.Uint16(pool[at:])), le.Uint16(pool[at+2:])
		if size == 0 && uses != 0 { // a long one: its length comes next
			if at += 4; at >= len(pool) {
				return nil, fmt.Errorf("%w: string pool is cut", ErrFormat)
			}
			size = int64(le.Uint32(pool[at:]))
		}
		if size > int64(len(data)) {
			return nil, fmt.Errorf("%w: string %d ends after the data", ErrFormat, len(p.texts))
		}
		p.texts = append(p.texts, string(data[:size]))
		data = data[size:]
	}
	return p, nil
}

// read reads the rows of a table.
func (t *Table) read(open func(name string) ([]byte, error), p *openedPool) error {
	if len(t.Columns) == 0 {
		return fmt.Errorf("%w: table %s has no columns", ErrFormat, t.Name)
	}
	b, err := open(streamName(t.Name, true))
	if err != nil {
		return err
	}
	id := 2
	if p.wide {
		id = 3
	}
	width := make([]int, len(t.Columns))
	size := 0
	for i, c := range t.Columns {
		switch {
		case c.text():
			width[i] = id
		case c.long():
			width[i] = 4
		default:
			width[i] = 2
		}
		size += width[i]
	}
	rows := len(b) / size
	if len(b)%size != 0 || rows > mostRows {
		return fmt.Errorf("%w: table %s has %d bytes in rows of %d", ErrFormat, t.Name, len(b), size)
	}
	t.Rows = make([][]any, rows)
	for i := range t.Rows {
		t.Rows[i] = make([]any, len(t.Columns))
	}
	for n, c := range t.Columns {
		for i := range rows {
			cell := b[:width[n]]
			b = b[width[n]:]
			if t.Rows[i][n], err = c.value(cell, p); err != nil {
				return fmt.Errorf("table %s: %w", t.Name, err)
			}
		}
	}
	return nil
}

// value is a cell that is read.
func (c Column) value(cell []byte, p *openedPool) (any, error) {
	var n int64
	for i, v := range cell {
		n |= int64(v) << (8 * i)
	}
	switch {
	case n == 0:
		return nil, nil
	case c.text():
		if n >= int64(len(p.texts)) {
			return nil, fmt.Errorf("%w: column %s: there is no string %d", ErrFormat, c.Name, n)
		}
		return p.texts[n], nil
	case c.long():
		return int(n - 1<<31), nil
	}
	return int(n - 1<<15), nil
}
