package msi

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"
)

// Summary is the summary information of a database.
type Summary struct {
	Title       string
	Subject     string
	Author      string
	Keywords    string
	Comments    string
	Template    string // platform and languages: x64;1033
	PackageCode string // {GUID}, another one for every file
	Created     time.Time
	Schema      int // version of Windows Installer that is needed, times 100
	WordCount   int // 2: files are compressed, names are long
	Program     string
	Security    int // 2: read-only is recommended
}

const summaryStream = "\x05SummaryInformation"

// Ids and types of properties (MS-OLEPS §2.15).
const (
	idCodePage, idTitle, idSubject, idAuthor, idKeywords, idComments, idTemplate, idPackageCode = 1, 2, 3, 4, 5, 6, 7, 9

	idCreated, idSaved, idSchema, idWordCount, idProgram, idSecurity = 12, 13, 14, 15, 18, 19

	typeShort, typeInt, typeString, typeTime = 2, 3, 30, 64

	mostProperties = 100
)

// sectionAt is where the only section begins.
const sectionAt = 48

// formatID is F29F85E0-4FF9-1068-AB91-08002B27B3D9.
const formatID = "\xe0\x85\x9f\xf2\xf9\x4f\x68\x10\xab\x91\x08\x00\x2b\x27\xb3\xd9"

// between is the time from 1601, from which Windows counts, to 1970.
const between = 11644473600

func (s Summary) bytes() ([]byte, error) {
	le := binary.LittleEndian
	var values []byte
	type place struct{ id, offset int }
	var places []place
	put := func(id, kind int, value []byte) {
		places = append(places, place{id, len(values)})
		values = le.AppendUint32(values, uint32(kind))
		values = append(values, value...)
		for len(values)%4 != 0 {
			values = append(values, 0)
		}
	}
	var err error
	text := func(id int, value string) {
		if value == "" {
			return
		}
		if bytes.ContainsRune([]byte(value), 0) || len(value) > 1<<15 {
			err = fmt.Errorf("summary property %d: %d bytes, or a NUL in it", id, len(value))
		}
		b := le.AppendUint32(nil, uint32(len(value)+1))
		put(id, typeString, append(append(b, value...), 0))
	}
	number := func(id, value int) {
		put(id, typeInt, le.AppendUint32(nil, uint32(value)))
	}
	put(idCodePage, typeShort, le.AppendUint16(nil, uint16(western)))
	text(idTitle, s.Title)
	text(idSubject, s.Subject)
	text(idAuthor, s.Author)
	text(idKeywords, s.Keywords)
	text(idComments, s.Comments)
	text(idTemplate, s.Template)
	text(idPackageCode, s.PackageCode)
	ticks := uint64(s.Created.Unix()+between) * 1e7
	put(idCreated, typeTime, le.AppendUint64(nil, ticks))
	put(idSaved, typeTime, le.AppendUint64(nil, ticks))
	number(idSchema, s.Schema)
	number(idWordCount, s.WordCount)
	text(idProgram, s.Program)
	number(idSecurity, s.Security)
	if err != nil {
		return nil, err
	}

	head := 8 + 8*len(places)
	b := []byte{0xfe, 0xff, 0, 0, 6, 1, 2, 0} // byte order, version, Windows 6.1
	b = append(b, make([]byte, 16)...)
	b = le.AppendUint32(b, 1)
	b = append(b, formatID...)
	b = le.AppendUint32(b, sectionAt)
	b = le.AppendUint32(b, uint32(head+len(values)))
	b = le.AppendUint32(b, uint32(len(places)))
	for _, p := range places {
		b = le.AppendUint32(b, uint32(p.id))
		b = le.AppendUint32(b, uint32(head+p.offset))
	}
	return append(b, values...), nil
}

// readSummary reads a summary; what it does not know it leaves out.
func readSummary(b []byte) (Summary, error) {
	var s Summary
	le := binary.LittleEndian
	if len(b) < sectionAt+8 || le.Uint16(b) != 0xfffe || string(b[28:44]) != formatID {
		return s, fmt.Errorf("%w: no summary", ErrFormat)
	}
	at := int64(le.Uint32(b[44:]))
	if at > int64(len(b))-8 {
		return s, fmt.Errorf("%w: the summary is outside", ErrFormat)
	}
	section := b[at:]
	count := int(le.Uint32(section[4:]))
	if count > mostProperties || len(section) < 8+8*count {
		return s, fmt.Errorf("%w: summary of %d properties", ErrFormat, count)
	}
	texts := map[uint32]*string{idTitle: &s.Title, idSubject: &s.Subject, idAuthor: &s.Author, idKeywords: &s.Keywords,
		idComments: &s.Comments, idTemplate: &s.Template, idPackageCode: &s.PackageCode, idProgram: &s.Program}
	numbers := map[uint32]*int{idSchema: &s.Schema, idWordCount: &s.WordCount, idSecurity: &s.Security}
	for i := range count {
		id, offset := le.Uint32(section[8+8*i:]), int64(le.Uint32(section[12+8*i:]))
		if offset > int64(len(section))-8 {
			return s, fmt.Errorf("%w: summary property %d is outside", ErrFormat, id)
		}
		kind, value := le.Uint32(section[offset:]), section[offset+4:]
		switch {
		case kind == typeString && texts[id] != nil:
			size := int64(le.Uint32(value))
			if size < 1 || size > int64(len(value))-4 {
				return s, fmt.Errorf("%w: summary property %d has %d bytes", ErrFormat, id, size)
			}
			text, _, _ := bytes.Cut(value[4:4+size], []byte{0})
			*texts[id] = string(text)
		case kind == typeInt && numbers[id] != nil:
			*numbers[id] = int(int32(le.Uint32(value)))
		case kind == typeTime && id == idCreated && len(value) >= 8:
			ticks := le.Uint64(value)
			s.Created = time.Unix(int64(ticks/1e7)-between, 0).UTC()
		}
	}
	return s, nil
}
