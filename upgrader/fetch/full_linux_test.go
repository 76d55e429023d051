package fetch

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A file system of one MiB gets full in the middle of a download: then nothing of that stays, and what was there is there.
func TestAFullDiskDoesNotStayFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("needs a machine where we may mount a small file system: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	free := func() uint64 {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			t.Fatal(err)
		}
		return s.Bfree * uint64(s.Bsize)
	}
	r := request(t)
	r.Path = filepath.Join(dir, "devopsAgent")
	small, large := content(300_000), content(900_000)
	if _, err := File(t.Context(), r, serve(t, give(small)).open); err != nil {
		t.Fatal(err)
	}
	before := free()
	s := serve(t, give(large))
	for range 2 {
		if _, err := File(t.Context(), r, s.open); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v", err)
		}
		have(t, r.Path, small)
		if now := free(); now != before {
			t.Errorf("%d bytes are free, before it were %d", now, before)
		}
	}
	// Asking first writes nothing at all.
	r.Free = func(string) (uint64, error) { return free(), nil }
	var little *RoomError
	if _, err := File(t.Context(), r, s.open); !errors.As(err, &little) {
		t.Errorf("%v", err)
	}
	r.Free = nil
	// Not even a first byte: a filler takes the rest, and goes again.
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := File(t.Context(), r, s.open); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	if err := errors.Join(os.Remove(filler), os.Remove(r.Path)); err != nil {
		t.Fatal(err)
	}
	if _, err := File(t.Context(), r, s.open); err != nil {
		t.Errorf("with room again: %v", err)
	}
	have(t, r.Path, large)
}
