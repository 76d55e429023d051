package cab

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// Write writes a cabinet with the files in the order given. Files with the same bytes are packed once, however many names they have.
// The bytes depend on nothing but the arguments.
func Write(w io.Writer, files []File) error {
	if len(files) == 0 || len(files) > math.MaxUint16 {
		return fmt.Errorf("cabinet of %d files: want 1 to %d", len(files), math.MaxUint16)
	}
	le := binary.LittleEndian
	var index []byte
	var plain []byte
	at := map[[sha256.Size]byte]int{}
	for _, f := range files {
		if err := checkName(f.Name); err != nil {
			return err
		}
		digest := sha256.Sum256(f.Data)
		offset, known := at[digest]
		if !known {
			offset = len(plain)
			at[digest] = offset
			plain = append(plain, f.Data...)
		}
		if len(plain) > math.MaxInt32 {
			return fmt.Errorf("cabinet of more than %d bytes", math.MaxInt32)
		}
		index = le.AppendUint32(index, uint32(len(f.Data)))
		index = le.AppendUint32(index, uint32(offset))
		date, clock := dosTime(f.Time)
		for _, word := range []uint16{0, date, clock, attributes} { // folder 0
			index = le.AppendUint16(index, word)
		}
		index = append(append(index, f.Name...), 0)
	}
	blocks, count, err := pack(plain)
	if err != nil {
		return err
	}
	const first = headerSize + folderSize
	data := first + len(index)
	if count > math.MaxUint16 || data+len(blocks) > math.MaxInt32 {
		return fmt.Errorf("cabinet of %d blocks and %d bytes is too big", count, data+len(blocks))
	}
	head := append(make([]byte, 0, first), magic...)
	for _, word := range []uint32{0, uint32(data + len(blocks)), 0, first, 0} {
		head = le.AppendUint32(head, word) // reserved, size, reserved, files, reserved
	}
	head = append(head, 3, 1) // version 1.3
	for _, word := range []uint16{1, uint16(len(files)), 0, 0, 0} {
		head = le.AppendUint16(head, word) // folders, files, flags, set, number in the set
	}
	head = le.AppendUint32(head, uint32(data))
	head = le.AppendUint16(head, uint16(count))
	head = le.AppendUint16(head, mszip)
	for _, part := range [][]byte{head, index, blocks} {
		if _, err := w.Write(part); err != nil {
			return fmt.Errorf("write cabinet: %w", err)
		}
	}
	return nil
}

func checkName(name string) error {
	if name == "" || len(name) > 255 {
		return fmt.Errorf("file name %q in a cabinet: want 1 to 255 bytes", name)
	}
	for _, c := range []byte(name) {
		if c < ' ' || c > '~' {
			return fmt.Errorf("file name %q in a cabinet: only printable ASCII", name)
		}
	}
	return nil
}

// pack deflates the bytes in blocks. Each is a stream of its own: nothing a block needs is in the one before.
func pack(plain []byte) (blocks []byte, count int, err error) {
	var packed bytes.Buffer
	z, err := flate.NewWriter(nil, flate.BestCompression)
	if err != nil {
		return nil, 0, err
	}
	for ; len(plain) > 0; count++ {
		piece := plain[:min(blockSize, len(plain))]
		plain = plain[len(piece):]
		packed.Reset()
		packed.WriteString(blockMagic)
		z.Reset(&packed)
		if _, err := z.Write(piece); err != nil {
			return nil, 0, err
		}
		if err := z.Close(); err != nil {
			return nil, 0, err
		}
		sizes := binary.LittleEndian.AppendUint16(nil, uint16(packed.Len()))
		sizes = binary.LittleEndian.AppendUint16(sizes, uint16(len(piece)))
		blocks = binary.LittleEndian.AppendUint32(blocks, checksum(sizes, checksum(packed.Bytes(), 0)))
		blocks = append(append(blocks, sizes...), packed.Bytes()...)
	}
	return blocks, count, nil
}
