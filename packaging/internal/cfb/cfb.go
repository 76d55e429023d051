package cfb

import (
	"cmp"
	"errors"
	"slices"
	"unicode"
	"unicode/utf16"
)

// Stream is one of the streams in the root of a compound file.
type Stream struct {
	Name string // of at most 31 UTF-16 units
	Data []byte
}

// ErrFormat: the bytes are not a compound file, or a damaged one.
var ErrFormat = errors.New("not a sound compound file")

// Numbers of MS-CFB §2.1 and §2.2.
const (
	freeSector = 0xffffffff
	endOfChain = 0xfffffffe
	fatSector  = 0xfffffffd
	difSector  = 0xfffffffc
	maxRegular = 0xfffffffa
	noStream   = 0xffffffff

	headerSize  = 512
	entrySize   = 128
	miniSize    = 64
	miniCutoff  = 4096
	inHeader    = 109 // FAT sectors that the header names
	nameUnits   = 31
	typeStorage = 1
	typeStream  = 2
	typeRoot    = 5
	red, black  = 0, 1
)

const magic = "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

// compareNames is the order of siblings (MS-CFB §2.6.4): shorter names first, then by upper-case units.
func compareNames(a, b string) int {
	x, y := upper(a), upper(b)
	if c := cmp.Compare(len(x), len(y)); c != 0 {
		return c
	}
	return slices.Compare(x, y)
}

func upper(name string) []uint16 {
	units := utf16.Encode([]rune(name))
	for i, u := range units {
		if r := unicode.ToUpper(rune(u)); r <= 0xffff && !utf16.IsSurrogate(r) {
			units[i] = uint16(r)
		}
	}
	return units
}
