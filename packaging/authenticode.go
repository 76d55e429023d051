package packaging

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// Of the PE format (Microsoft's "PE Format", Windows' winnt.h): where things are from the beginning of a header, in bytes, and
// which of the directories has the certificates.
const (
	peNewHeader  = 0x3c
	peOptional   = 4 + 20 // behind the signature "PE\0\0" and the file header
	peChecksum   = 64
	peMagic32    = 0x10b
	peMagic64    = 0x20b
	peDirs32     = 96
	peDirs64     = 112
	peDirEntry   = 8
	peCertDir    = 4
	peAlignment  = 8 // of certificates
	peSmallestPE = 64
)

// bareSum is the SHA-256, in hex, of a program for Windows without its Authenticode signature, and whether it has one. It is "" for
// what is no such program. What a signer changes beside adding certificates at the end is left out: the checksum, and zeros
// before them.
func bareSum(data []byte) (sum string, signed bool) {
	if len(data) < peSmallestPE || string(data[:2]) != "MZ" {
		return "", false
	}
	at := int64(binary.LittleEndian.Uint32(data[peNewHeader:]))
	optional := at + peOptional
	if optional+peDirs64 > int64(len(data)) || string(data[at:at+4]) != "PE\x00\x00" {
		return "", false
	}
	dirs := optional
	switch binary.LittleEndian.Uint16(data[optional:]) {
	case peMagic32:
		dirs += peDirs32
	case peMagic64:
		dirs += peDirs64
	default:
		return "", false
	}
	entry := dirs + peCertDir*peDirEntry
	if entry+peDirEntry > int64(len(data)) || binary.LittleEndian.Uint32(data[dirs-4:]) <= peCertDir {
		return "", false
	}
	offset, size := int64(binary.LittleEndian.Uint32(data[entry:])), int64(binary.LittleEndian.Uint32(data[entry+4:]))
	if signed = size != 0; signed {
		if offset < entry+peDirEntry || offset+size != int64(len(data)) { // more than a signature has been added
			return "", false
		}
		data = data[:offset]
	}
	bare := bytes.Clone(data)
	clear(bare[optional+peChecksum:][:4])
	clear(bare[entry:][:peDirEntry])
	bare = append(bare, make([]byte, (peAlignment-len(bare)%peAlignment)%peAlignment)...)
	h := sha256.Sum256(bare)
	return hex.EncodeToString(h[:]), signed
}
