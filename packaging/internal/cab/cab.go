package cab

import (
	"encoding/binary"
	"errors"
	"time"
)

// File is a file of a cabinet.
type File struct {
	Name string // Windows Installer's key of the file; at most 255 bytes of ASCII
	Time time.Time
	Data []byte
}

// ErrFormat: the bytes are not a cabinet, or a damaged one.
var ErrFormat = errors.New("not a sound cabinet")

// Sizes and numbers of MS-CAB §2.
const (
	magic      = "MSCF"
	headerSize = 36
	folderSize = 8
	fileSize   = 16
	dataSize   = 8
	blockSize  = 32768 // plain bytes of a block
	stored     = 0
	mszip      = 1
	attributes = 0x20 // archive
	blockMagic = "CK"
	mostBlock  = blockSize + 6144 // packed bytes of a block, at the most
)

// checksum is that of a block: its bytes as little-endian words, all XORed; what is left over counts as one word whose first
// byte is the highest.
func checksum(b []byte, seed uint32) uint32 {
	sum := seed
	for ; len(b) >= 4; b = b[4:] {
		sum ^= binary.LittleEndian.Uint32(b)
	}
	var rest uint32
	for _, c := range b {
		rest = rest<<8 | uint32(c)
	}
	return sum ^ rest
}

// dosTime is a time as FAT file systems have it, in UTC, to two seconds.
func dosTime(t time.Time) (date, clock uint16) {
	t = t.UTC()
	year := min(max(t.Year(), 1980), 2107)
	date = uint16((year-1980)<<9 | int(t.Month())<<5 | t.Day())
	return date, uint16(t.Hour()<<11 | t.Minute()<<5 | t.Second()>>1)
}

func fromDOS(date, clock uint16) time.Time {
	return time.Date(1980+int(date>>9), time.Month(date>>5&15), int(date&31), int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
}
