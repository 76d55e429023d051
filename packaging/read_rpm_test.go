package packaging

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/devops-agent/devops-agent/packaging/internal/rpm"
)

// TestEveryByteOfTheHeaderCounts: the header of an rpm, which says what belongs where, has a digest of its own; and without that
// one, each file has to have its own.
func TestEveryByteOfTheHeaderCounts(t *testing.T) {
	m, err := Contents(wholeRelease(t, "v1.2.4-dev.3"), RPM, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	data := written(t, RPM, m)
	head, err := rpm.Read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for at := head.Start; at < head.End; at += 11 {
		damaged := slices.Clone(data)
		damaged[at] ^= 0x55
		if _, err := List(RPM, bytes.NewReader(damaged), int64(len(damaged))); err == nil {
			t.Fatalf("byte %d of the header is another, and nobody noticed", at-head.Start)
		}
	}
	old := slices.Clone(data) // as of an rpm that knew no such digest
	const sha256Entry = "\x00\x00\x01\x11\x00\x00\x00\x06"
	at := bytes.Index(old[:head.Start], []byte(sha256Entry))
	if at < 0 {
		t.Fatal("no digest of the header")
	}
	binary.BigEndian.PutUint32(old[at:], 1<<20)
	if _, err := List(RPM, bytes.NewReader(old), int64(len(old))); err != nil {
		t.Fatalf("without a digest of the header: %v", err)
	}
	digests := head.Header.Strings(rpm.FileDigests)
	digest := digests[slices.IndexFunc(digests, func(d string) bool { return d != "" })]
	at = bytes.Index(old, []byte(digest))
	old[at] = 0
	if _, err := List(RPM, bytes.NewReader(old), int64(len(old))); !errors.Is(err, rpm.ErrFormat) {
		t.Errorf("a file without a digest: %v", err)
	}
}
