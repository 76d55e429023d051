package macho

import (
	"bytes"
	"debug/macho"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// program is a small one, in form.
func program(cpu uint32, signed bool, size int) []byte {
	commands := []uint32{0x1b, 24, 0, 0, 0, 0} // LC_UUID
	if signed {
		commands = append(commands, codeSignature, 16, 0, 0)
	}
	count := uint32(1)
	if signed {
		count = 2
	}
	b := []byte{}
	for _, v := range append([]uint32{magic64, cpu, 3, 2, count, uint32(4 * len(commands)), 0, 0}, commands...) {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return append(b, bytes.Repeat([]byte{byte(cpu)}, size)...)
}

func TestJoinAndSplit(t *testing.T) {
	intel, apple := program(AMD64, false, 20000), program(ARM64, true, 70000)
	fat, err := Join(intel, apple)
	if err != nil {
		t.Fatal(err)
	}
	slices, err := Split(fat)
	if err != nil {
		t.Fatal(err)
	}
	if len(slices) != 2 || !bytes.Equal(slices[0].Data, intel) || !bytes.Equal(slices[1].Data, apple) || slices[0].Signed || !slices[1].Signed {
		t.Errorf("split into %d", len(slices))
	}
	if got := strings.Join(Arches(fat[:100]), ","); got != "x86_64,arm64" {
		t.Errorf("arches: %s", got)
	}
	if got := strings.Join(Arches(apple), ","); got != "arm64" {
		t.Errorf("arches: %s", got)
	}
	if got := Arches([]byte("#!/bin/sh\n")); got != nil {
		t.Errorf("a script is for %v", got)
	}
	one, err := Split(apple)
	if err != nil || len(one) != 1 || one[0].Arch() != "arm64" {
		t.Errorf("thin: %v, %v", one, err)
	}
}

// TestGoReadsIt: the standard library's reader, of real programs.
func TestGoReadsIt(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs go")
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var thin [][]byte
	for _, goarch := range []string{"amd64", "arm64"} {
		out := filepath.Join(dir, goarch)
		cmd := exec.Command("go", "build", "-o", out, source)
		cmd.Env = append(os.Environ(), "GOOS=darwin", "GOARCH="+goarch, "CGO_ENABLED=0", "GOFLAGS=")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		thin = append(thin, data)
	}
	fat, err := Join(thin...)
	if err != nil {
		t.Fatal(err)
	}
	f, err := macho.NewFatFile(bytes.NewReader(fat))
	if err != nil {
		t.Fatal(err)
	}
	var cpus []macho.Cpu
	for i, arch := range f.Arches {
		cpus = append(cpus, arch.Cpu)
		if arch.Align != align || arch.Offset%(1<<align) != 0 || int(arch.Size) != len(thin[i]) {
			t.Errorf("%s: %+v", arch.Cpu, arch.FatArchHeader)
		}
	}
	if !slices.Equal(cpus, []macho.Cpu{macho.CpuAmd64, macho.CpuArm64}) {
		t.Errorf("for %v", cpus)
	}
	all, err := Split(fat)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Arch() == "arm64" && !s.Signed {
			t.Error("the arm64 program has no signature: macOS kills it")
		}
	}
}

func TestWhatIsNoProgram(t *testing.T) {
	good := program(ARM64, true, 100)
	change := func(at int, v uint32) []byte {
		bad := bytes.Clone(good)
		binary.LittleEndian.PutUint32(bad[at:], v)
		return bad
	}
	for what, data := range map[string][]byte{
		"nothing":                 nil,
		"a script":                []byte("#!/bin/sh\nexit 0\n# and so on and so on\n"),
		"a cut one":               good[:40],
		"32 bits":                 change(0, 0xfeedface),
		"commands without end":    change(16, 1<<31),
		"a command of no size":    change(headerSize+4, 0),
		"a command of every size": change(headerSize+4, 1<<31),
	} {
		if _, err := Split(data); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := Join(data, good); err == nil {
			t.Errorf("%s was joined", what)
		}
	}
	if _, err := Join(good, good); err == nil {
		t.Error("two for one processor were joined")
	}
	if _, err := Join(); err == nil {
		t.Error("none were joined")
	}
	fat, err := Join(program(AMD64, false, 100), good)
	if err != nil {
		t.Fatal(err)
	}
	for what, at := range map[string]int{"count": 7, "processor": 8, "offset": 16, "size": 20, "second processor": 28} {
		bad := bytes.Clone(fat)
		bad[at] ^= 0x41
		if _, err := Split(bad); !errors.Is(err, ErrFormat) {
			t.Errorf("another %s: %v", what, err)
		}
	}
}

// FuzzSplit: what is read is within the file, and joins to something that is read the same.
func FuzzSplit(f *testing.F) {
	fat, err := Join(program(AMD64, false, 50), program(ARM64, true, 50))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(fat[:200])
	f.Add(program(ARM64, true, 10))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = Arches(data)
		all, err := Split(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("another error: %v", err)
			}
			return
		}
		var thin [][]byte
		for _, s := range all {
			thin = append(thin, s.Data)
		}
		joined, err := Join(thin...)
		if err != nil {
			return // two for one processor
		}
		again, err := Split(joined)
		if err != nil || len(again) != len(all) {
			t.Fatalf("split into %d, then %d: %v", len(all), len(again), err)
		}
	})
}
