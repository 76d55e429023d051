package cab

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
)

// mostFiles bounds what is read.
const mostFiles = 10000

// entry is a file before its bytes are there.
type entry struct {
	file   File
	folder int
	offset int64
	size   int64
}

// Read reads a cabinet whose files have at most limit bytes together, and checks every checksum. Files with the same bytes share
// them: do not change what is returned. Errors wrap ErrFormat.
func Read(b []byte, limit int64) ([]File, error) {
	le := binary.LittleEndian
	if len(b) < headerSize || string(b[:4]) != magic {
		return nil, fmt.Errorf("%w: no header", ErrFormat)
	}
	folders, files, flags := int(le.Uint16(b[26:])), int(le.Uint16(b[28:])), le.Uint16(b[30:])
	switch {
	case b[25] != 1 || b[24] > 3:
		return nil, fmt.Errorf("%w: version %d.%d", ErrFormat, b[25], b[24])
	case flags != 0: // parts of sets, and reserved fields, are none of ours
		return nil, fmt.Errorf("%w: flags %#x are not supported", ErrFormat, flags)
	case folders == 0 || files == 0 || files > mostFiles || len(b) < headerSize+folders*folderSize:
		return nil, fmt.Errorf("%w: %d folders, %d files", ErrFormat, folders, files)
	case int64(le.Uint32(b[8:])) != int64(len(b)):
		return nil, fmt.Errorf("%w: it says to have %d bytes, and has %d", ErrFormat, le.Uint32(b[8:]), len(b))
	}
	list, err := readIndex(b, files, folders)
	if err != nil {
		return nil, err
	}
	plain := make([][]byte, folders)
	for i := range folders {
		if plain[i], err = unpack(b, b[headerSize+i*folderSize:][:folderSize], limit); err != nil {
			return nil, err
		}
		limit -= int64(len(plain[i]))
	}
	out := make([]File, len(list))
	for i, e := range list {
		if e.offset+e.size > int64(len(plain[e.folder])) {
			return nil, fmt.Errorf("%w: file %q ends after its folder", ErrFormat, e.file.Name)
		}
		e.file.Data = plain[e.folder][e.offset : e.offset+e.size : e.offset+e.size]
		out[i] = e.file
	}
	return out, nil
}

func readIndex(b []byte, files, folders int) ([]entry, error) {
	le := binary.LittleEndian
	at := int64(le.Uint32(b[16:]))
	if at > int64(len(b)) {
		return nil, fmt.Errorf("%w: files are outside", ErrFormat)
	}
	rest := b[at:]
	var list []entry
	for range files {
		if len(rest) < fileSize {
			return nil, fmt.Errorf("%w: files are cut", ErrFormat)
		}
		end := bytes.IndexByte(rest[fileSize:min(len(rest), fileSize+256)], 0)
		e := entry{size: int64(le.Uint32(rest)), offset: int64(le.Uint32(rest[4:])), folder: int(le.Uint16(rest[8:]))}
		if end < 1 || e.folder >= folders {
			return nil, fmt.Errorf("%w: file without name or folder", ErrFormat)
		}
		e.file = File{Name: string(rest[fileSize : fileSize+end]), Time: fromDOS(le.Uint16(rest[10:]), le.Uint16(rest[12:]))}
		list = append(list, e)
		rest = rest[fileSize+end+1:]
	}
	return list, nil
}

// unpack reads the blocks of a folder.
func unpack(b, folder []byte, limit int64) ([]byte, error) {
	le := binary.LittleEndian
	at, blocks, kind := int64(le.Uint32(folder)), int(le.Uint16(folder[4:])), le.Uint16(folder[6:])
	if at > int64(len(b)) {
		return nil, fmt.Errorf("%w: data is outside", ErrFormat)
	}
	if kind != stored && kind != mszip {
		return nil, fmt.Errorf("%w: compression %d is not supported", ErrFormat, kind)
	}
	rest := b[at:]
	var plain []byte
	for i := range blocks {
		if len(rest) < dataSize {
			return nil, fmt.Errorf("%w: block %d is cut", ErrFormat, i)
		}
		sum, packed, size := le.Uint32(rest), int(le.Uint16(rest[4:])), int(le.Uint16(rest[6:]))
		if packed > mostBlock || packed > len(rest)-dataSize || size > blockSize || int64(len(plain)+size) > limit {
			return nil, fmt.Errorf("%w: block %d of %d bytes, unpacked %d, is too big", ErrFormat, i, packed, size)
		}
		data := rest[dataSize : dataSize+packed]
		if sum != 0 && sum != checksum(rest[4:dataSize], checksum(data, 0)) { // 0: none
			return nil, fmt.Errorf("%w: block %d has the wrong checksum", ErrFormat, i)
		}
		rest = rest[dataSize+packed:]
		var before []byte
		if n := len(plain); n > 0 {
			before = plain[max(0, n-blockSize):]
		}
		piece, err := inflate(data, before, kind, size)
		if err != nil {
			return nil, fmt.Errorf("%w: block %d: %w", ErrFormat, i, err)
		}
		plain = append(plain, piece...)
	}
	return plain, nil
}

// inflate unpacks a block. Others' blocks may need what is in the one before.
func inflate(data, before []byte, kind uint16, size int) ([]byte, error) {
	if kind == stored {
		if len(data) != size {
			return nil, fmt.Errorf("%d bytes stored as %d", size, len(data))
		}
		return data, nil
	}
	deflated, ok := bytes.CutPrefix(data, []byte(blockMagic))
	if !ok {
		return nil, fmt.Errorf("no %s", blockMagic)
	}
	z := flate.NewReaderDict(bytes.NewReader(deflated), before)
	piece := make([]byte, size)
	if _, err := io.ReadFull(z, piece); err != nil {
		return nil, err
	}
	if n, err := z.Read(make([]byte, 1)); n != 0 || err != io.EOF { //nolint:errorlint // flate returns it as it is
		return nil, fmt.Errorf("more than %d bytes", size)
	}
	return piece, nil
}
