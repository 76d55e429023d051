package macho

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrFormat is wrapped by every error about bytes that are no program.
var ErrFormat = errors.New("not a Mach-O program")

// The processors of Macs.
const (
	AMD64 = 0x01000007
	ARM64 = 0x0100000c
)

// The parts of the form: <mach-o/loader.h>, <mach-o/fat.h>.
const (
	magic64       = 0xfeedfacf // little-endian
	magicFat      = 0xcafebabe // big-endian; also that of Java classes, whose version is where the count is
	maxSlices     = 16
	headerSize    = 32
	fatHeader     = 8
	fatSlice      = 20
	align         = 14 // 16 KiB, a page of arm64
	codeSignature = 0x1d
	maxCommands   = 4096
)

// Slice is a program for one processor.
type Slice struct {
	CPU, SubType uint32
	Signed       bool   // it has a code signature; macOS kills arm64 programs that have none
	Data         []byte // whole
}

// Arch is the processor in Apple's words.
func (s Slice) Arch() string {
	switch s.CPU {
	case AMD64:
		return "x86_64"
	case ARM64:
		return "arm64"
	}
	return fmt.Sprintf("cpu %#x", s.CPU)
}

func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// thin reads a program for one processor.
func thin(data []byte) (Slice, error) {
	if len(data) < headerSize || binary.LittleEndian.Uint32(data) != magic64 {
		return Slice{}, wrong("it begins with %x", data[:min(4, len(data))])
	}
	s := Slice{CPU: binary.LittleEndian.Uint32(data[4:]), SubType: binary.LittleEndian.Uint32(data[8:]), Data: data}
	count := binary.LittleEndian.Uint32(data[16:])
	if count > maxCommands {
		return Slice{}, wrong("%d load commands", count)
	}
	for at := headerSize; count > 0; count-- {
		if len(data)-at < 8 {
			return Slice{}, wrong("its load commands are cut short")
		}
		size := binary.LittleEndian.Uint32(data[at+4:])
		if size < 8 || uint64(size) > uint64(len(data)-at) {
			return Slice{}, wrong("a load command of %d bytes", size)
		}
		if binary.LittleEndian.Uint32(data[at:]) == codeSignature {
			s.Signed = true
		}
		at += int(size)
	}
	return s, nil
}

// Join makes one program of several, each for another processor, in the order given.
func Join(programs ...[]byte) ([]byte, error) {
	if len(programs) == 0 || len(programs) > maxSlices {
		return nil, fmt.Errorf("universal program: of %d programs", len(programs))
	}
	out := binary.BigEndian.AppendUint32(nil, magicFat)
	out = binary.BigEndian.AppendUint32(out, uint32(len(programs)))
	offset := fatHeader + fatSlice*len(programs)
	seen := map[uint32]bool{}
	var offsets []int
	for _, p := range programs {
		s, err := thin(p)
		if err != nil {
			return nil, fmt.Errorf("universal program: %w", err)
		}
		if seen[s.CPU] {
			return nil, fmt.Errorf("universal program: twice for %s", s.Arch())
		}
		seen[s.CPU] = true
		offset = (offset + 1<<align - 1) &^ (1<<align - 1)
		if uint64(offset)+uint64(len(p)) > 1<<32-1 {
			return nil, errors.New("universal program: of 4 GiB and more")
		}
		for _, v := range []uint32{s.CPU, s.SubType, uint32(offset), uint32(len(p)), align} {
			out = binary.BigEndian.AppendUint32(out, v)
		}
		offsets = append(offsets, offset)
		offset += len(p)
	}
	for i, p := range programs {
		out = append(out, make([]byte, offsets[i]-len(out))...)
		out = append(out, p...)
	}
	return out, nil
}

// Is reports whether a file claims to be a program of macOS: its first bytes are enough.
func Is(data []byte) bool {
	if len(data) < 8 {
		return false
	}
	count := binary.BigEndian.Uint32(data[4:])
	return binary.LittleEndian.Uint32(data) == magic64 || binary.BigEndian.Uint32(data) == magicFat && count > 0 && count <= maxSlices
}

// Split reads a program for one or for several processors.
func Split(data []byte) ([]Slice, error) {
	if len(data) < fatHeader || binary.BigEndian.Uint32(data) != magicFat {
		s, err := thin(data)
		if err != nil {
			return nil, err
		}
		return []Slice{s}, nil
	}
	count := binary.BigEndian.Uint32(data[4:])
	if count == 0 || count > maxSlices || len(data) < fatHeader+fatSlice*int(count) {
		return nil, wrong("universal, of %d programs", count)
	}
	var all []Slice
	end := uint64(fatHeader + fatSlice*int(count))
	for i := range int(count) {
		head := data[fatHeader+fatSlice*i:]
		offset, size := uint64(binary.BigEndian.Uint32(head[8:])), uint64(binary.BigEndian.Uint32(head[12:]))
		if offset < end || offset+size > uint64(len(data)) || offset%(1<<12) != 0 {
			return nil, wrong("universal, program %d at %d", i, offset)
		}
		end = offset + size
		s, err := thin(data[offset:end])
		if err != nil {
			return nil, err
		}
		if s.CPU != binary.BigEndian.Uint32(head) {
			return nil, wrong("universal, program %d is for %s", i, s.Arch())
		}
		all = append(all, s)
	}
	return all, nil
}

// Arches are the processors that the beginning of a file names, in Apple's words; none when it is no program. It looks no further
// than the first headers.
func Arches(beginning []byte) []string {
	if !Is(beginning) {
		return nil
	}
	if binary.LittleEndian.Uint32(beginning) == magic64 {
		return []string{Slice{CPU: binary.LittleEndian.Uint32(beginning[4:])}.Arch()}
	}
	var all []string
	for i := range int(binary.BigEndian.Uint32(beginning[4:])) {
		at := fatHeader + fatSlice*i
		if len(beginning) < at+fatSlice {
			break
		}
		all = append(all, Slice{CPU: binary.BigEndian.Uint32(beginning[at:])}.Arch())
	}
	return all
}
