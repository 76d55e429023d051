package lab

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// logOf writes a log as QEMU does; its head says that it is empty, as after a SIGKILL.
func logOf(entries ...func(*bytes.Buffer)) []byte {
	var b bytes.Buffer
	sector := func(words ...uint64) {
		head := make([]byte, 512)
		for i, w := range words {
			binary.LittleEndian.PutUint64(head[8*i:], w)
		}
		b.Write(head)
	}
	sector(logMagic, 1, 0, 512)
	for _, e := range entries {
		e(&b)
	}
	return b.Bytes()
}

func logged(sector, kind uint64, data byte, sectors int) func(*bytes.Buffer) {
	return func(b *bytes.Buffer) {
		head := make([]byte, 512)
		for i, w := range []uint64{sector, uint64(sectors), kind} {
			binary.LittleEndian.PutUint64(head[8*i:], w)
		}
		b.Write(head)
		b.Write(bytes.Repeat([]byte{data}, 512*sectors))
	}
}

func TestPowerCutKeepsWhatWasFlushed(t *testing.T) {
	disk, log := filepath.Join(t.TempDir(), "disk"), filepath.Join(t.TempDir(), "log")
	text := logOf(logged(0, 0, 'a', 16), logged(8, 0, 'b', 8), logged(0, logFlush, 0, 0), logged(0, 0, 'c', 8), logged(16, logFUA, 'd', 8))
	if err := os.WriteFile(log, append(text, 0, 0, 0), 0o600); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for seed := range uint64(20) {
		if err := os.WriteFile(disk, make([]byte, 32*512), 0o600); err != nil {
			t.Fatal(err)
		}
		cut, err := LosePower(disk, log, seed)
		if err != nil {
			t.Fatal(err)
		}
		if cut.Writes != 4 || cut.Flushes != 1 || cut.Unflushed != 1 || seed == 0 && cut.Lost != 0 {
			t.Errorf("seed %d: %+v", seed, cut)
		}
		data, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		now := string([]byte{data[0], data[8*512], data[16*512], data[24*512]})
		found[now] = true
		if (now[0] == 'a') != (cut.Lost == 1) {
			t.Errorf("seed %d: %q after %+v", seed, now, cut)
		}
	}
	if len(found) != 2 || !found["cbd\x00"] || !found["abd\x00"] {
		t.Errorf("states %v", found)
	}
}

func TestPowerCutNeedsALog(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(log, make([]byte, 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LosePower(log, log, 1); err == nil {
		t.Error("no error for a file of zeros")
	}
}
