package bom

import "hash"

// sum is the checksum of POSIX cksum(1): a CRC of the content and of its length.
type sum struct {
	table  [256]uint32
	crc    uint32
	length uint64
}

// NewSum is the checksum that a bill keeps of each file, that of cksum(1).
func NewSum() hash.Hash32 {
	s := &sum{}
	for i := range s.table {
		crc := uint32(i) << 24
		for range 8 {
			if crc&(1<<31) != 0 {
				crc = crc<<1 ^ 0x04c11db7
			} else {
				crc <<= 1
			}
		}
		s.table[i] = crc
	}
	return s
}

// Write adds content; it never fails.
func (s *sum) Write(b []byte) (int, error) {
	crc := s.crc
	for _, c := range b {
		crc = crc<<8 ^ s.table[byte(crc>>24)^c]
	}
	s.crc = crc
	s.length += uint64(len(b))
	return len(b), nil
}

// Sum32 is the checksum of what was written.
func (s *sum) Sum32() uint32 {
	crc := s.crc
	for n := s.length; n > 0; n >>= 8 {
		crc = crc<<8 ^ s.table[byte(crc>>24)^byte(n)]
	}
	return ^crc
}

// Sum appends it, big-endian.
func (s *sum) Sum(b []byte) []byte {
	v := s.Sum32()
	return append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

// Reset begins again.
func (s *sum) Reset() { s.crc, s.length = 0, 0 }

// Size is that of a sum: 4 bytes.
func (s *sum) Size() int { return 4 }

// BlockSize is 1: there are no blocks.
func (s *sum) BlockSize() int { return 1 }
