package rpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

type value struct {
	tag, kind, count int
	data             string
}

// header makes one as rpm writes it.
func header(values ...value) []byte {
	var index, store bytes.Buffer
	for _, v := range values {
		if width := map[int]int{typeInt16: 2, typeInt32: 4, typeInt64: 8}[v.kind]; width > 0 {
			for store.Len()%width != 0 {
				store.WriteByte(0)
			}
		}
		for _, n := range []int{v.tag, v.kind, store.Len(), v.count} {
			_ = binary.Write(&index, binary.BigEndian, uint32(n))
		}
		store.WriteString(v.data)
	}
	all := bytes.NewBufferString(headerMagic + "\x00\x00\x00\x00")
	_ = binary.Write(all, binary.BigEndian, []uint32{uint32(len(values)), uint32(store.Len())})
	all.Write(index.Bytes())
	all.Write(store.Bytes())
	return all.Bytes()
}

func pack(signature, main []byte) []byte {
	all := append([]byte(LeadMagic), make([]byte, leadSize-4)...)
	all = append(all, signature...)
	all = append(all, make([]byte, (8-len(signature)%8)%8)...)
	return append(append(all, main...), "payload"...)
}

func sample() []byte {
	return pack(header(value{SigPayloadSize, typeInt32, 1, "\x00\x00\x01\x02"}, value{SigRSA, typeBin, 3, "sig"}),
		header(value{Name, typeString, 1, "demo\x00"}, value{Summary, typeI18N, 2, "one\x00eins\x00"},
			value{BaseNames, typeStrings, 2, "a\x00b\x00"}, value{FileModes, typeInt16, 2, "\x81\xa4\x41\xed"},
			value{LongSize, typeInt64, 1, "\x00\x00\x00\x01\x00\x00\x00\x00"}))
}

func TestHeadIsRead(t *testing.T) {
	data := sample()
	r := bytes.NewReader(data)
	h, err := Read(r)
	if err != nil {
		t.Fatal(err)
	}
	if h.End != int64(len(data)-len("payload")) || !bytes.Equal(h.Signed, data[h.Start:h.End]) || r.Len() != len("payload") {
		t.Errorf("from %d to %d of %d, %d left", h.Start, h.End, len(data), r.Len())
	}
	if h.Header.String(Name) != "demo" || h.Header.String(Summary) != "one" || !slices.Equal(h.Header.Strings(BaseNames), []string{"a", "b"}) {
		t.Errorf("%q %q %q", h.Header.String(Name), h.Header.String(Summary), h.Header.Strings(BaseNames))
	}
	if !slices.Equal(h.Header.Ints(FileModes), []int64{0o100644, 0o40755}) || !slices.Equal(h.Header.Ints(LongSize), []int64{1 << 32}) {
		t.Errorf("%o %d", h.Header.Ints(FileModes), h.Header.Ints(LongSize))
	}
	if n, ok := h.Signature.Int(SigPayloadSize); n != 258 || !ok || string(h.Signature.Bytes(SigRSA)) != "sig" {
		t.Errorf("%d, %q", n, h.Signature.Bytes(SigRSA))
	}
	// What is not there, or of another type, is nothing.
	if h.Header.Has(URL) || h.Header.String(URL) != "" || h.Header.String(FileModes) != "" || h.Header.Ints(Name) != nil || h.Header.Bytes(Name) != nil {
		t.Error("something was found")
	}
	if _, ok := h.Header.Int(Name); ok {
		t.Error("a name is a number")
	}
}

func TestBrokenHeadsAreRefused(t *testing.T) {
	good := sample()
	change := func(at int, with string) []byte {
		data := bytes.Clone(good)
		copy(data[at:], with)
		return data
	}
	for why, data := range map[string][]byte{
		"empty": nil, "other": bytes.Repeat([]byte("x"), 200), "the lead alone": good[:leadSize], "half": good[:len(good)/2],
		"no header":       change(leadSize, "xxxx"),
		"many values":     change(leadSize+8, "\xff\xff\xff\xff"),
		"a large store":   change(leadSize+12, "\x7f\xff\xff\xff"),
		"beyond the data": change(leadSize+16+8, "\x00\x00\xff\xff"),
		"no such type":    change(leadSize+16+4, "\x00\x00\x00\x63"),
	} {
		if _, err := Read(bytes.NewReader(data)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", why, err)
		}
	}
}

func TestValuesBeyondTheStoreAreNothing(t *testing.T) {
	h, err := Read(bytes.NewReader(pack(header(), header(value{FileModes, typeInt16, 9, "\x00\x01"}, value{SigRSA, typeBin, 10, "ab"}, value{Name, typeString, 1, "no end"}))))
	if err != nil {
		t.Fatal(err)
	}
	if h.Header.Strings(Name) != nil || h.Header.Ints(FileModes) != nil || h.Header.Bytes(SigRSA) != nil {
		t.Error("values were made up")
	}
}

func FuzzRead(f *testing.F) {
	f.Add(sample())
	f.Add(pack(header(), header()))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := Read(bytes.NewReader(data))
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Error(err)
			}
			return
		}
		if h.End > int64(len(data)) {
			t.Errorf("ends at %d of %d", h.End, len(data))
		}
		for tag := range h.Header.entries {
			h.Header.Strings(tag)
			h.Header.Ints(tag)
			h.Header.Bytes(tag)
		}
	})
}
