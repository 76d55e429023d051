package packaging

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// smallPE is as much of a program for Windows as is read here: 64 bit, with the given code and certificates.
func smallPE(code, certificates string) []byte {
	const header = 0x40
	b := make([]byte, header+peOptional+peDirs64+16*peDirEntry)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[peNewHeader:], header)
	copy(b[header:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[header+peOptional:], peMagic64)
	dirs := header + peOptional + peDirs64
	binary.LittleEndian.PutUint32(b[dirs-4:], 16)
	b = append(b, code...)
	if certificates == "" {
		return b
	}
	b = append(b, make([]byte, (peAlignment-len(b)%peAlignment)%peAlignment)...)
	binary.LittleEndian.PutUint32(b[header+peOptional+peChecksum:], 0xbadcafe)
	binary.LittleEndian.PutUint32(b[dirs+peCertDir*peDirEntry:], uint32(len(b)))              //nolint:gosec // small
	binary.LittleEndian.PutUint32(b[dirs+peCertDir*peDirEntry+4:], uint32(len(certificates))) //nolint:gosec // small
	return append(b, certificates...)
}

func TestSignaturesOfPrograms(t *testing.T) {
	plain, signed := bareSum(smallPE("code", ""))
	if len(plain) != 64 || signed {
		t.Errorf("%q, %v", plain, signed)
	}
	if bare, signed := bareSum(smallPE("code", "somebody's")); bare != plain || !signed {
		t.Errorf("signed it is %q, not %q; %v", bare, plain, signed)
	}
	if bare, _ := bareSum(smallPE("edoc", "somebody's")); bare == plain {
		t.Error("other code is the same")
	}
	for name, data := range map[string][]byte{
		"more behind the signature": append(smallPE("code", "somebody's"), 0),
		"a signature that is cut":   smallPE("code", "somebody's")[:0x40+peOptional+peDirs64+16*peDirEntry+8],
		"a text":                    bytes.Repeat([]byte("MZ text "), 100),
		"nothing":                   nil,
	} {
		if bare, signed := bareSum(data); bare != "" || signed {
			t.Errorf("%s: %q, %v", name, bare, signed)
		}
	}
}

// FuzzBareSum: foreign bytes give a sum or none, and nobody writes into them.
func FuzzBareSum(f *testing.F) {
	f.Add(smallPE("code", ""))
	f.Add(smallPE("code", "somebody's"))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := slices.Clone(data)
		if sum, _ := bareSum(data); sum != "" && len(sum) != 64 {
			t.Errorf("%q", sum)
		}
		if !bytes.Equal(before, data) {
			t.Error("the bytes are others")
		}
	})
}
