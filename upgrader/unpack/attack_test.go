package unpack

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// attack is an archive that must be refused.
type attack struct {
	name    string
	archive []byte
	limits  Limits
	entry   string // that the error names, unless it is ""
	reason  Reason
	late    bool // only the content gives it away, which Size does not read
}

// named makes both kinds of archive of the same entries.
func named(t *testing.T, name string, limits Limits, entry string, reason Reason, entries ...one) []attack {
	return []attack{
		{name + " zip", zipOf(t, entries...), limits, entry, reason, false},
		{name + " tar.gz", tgzOf(t, entries...), limits, entry, reason, false},
	}
}

func refusedNames(t *testing.T) (all []attack) {
	for name, reason := range map[string]Reason{
		"../x": ErrTraversal, "a/../../x": ErrTraversal, "a/../x": ErrTraversal, "..": ErrTraversal, "a/..": ErrTraversal,
		`..\x`: ErrTraversal, `a\..\..\x`: ErrTraversal, "./../x": ErrTraversal, "../outside/precious": ErrTraversal,
		"/etc/x": ErrAbsolute, "//server/share/x": ErrAbsolute, `\\server\share\x`: ErrAbsolute, `\x`: ErrAbsolute,
		`C:\x`: ErrAbsolute, "C:/x": ErrAbsolute, "c:x": ErrAbsolute, `\\?\C:\x`: ErrAbsolute, `\??\C:\x`: ErrAbsolute,
		`a\b`: ErrName, "ab:stream": ErrName, "d/a:b:$DATA": ErrName, "a?": ErrName, "a*": ErrName, "a<": ErrName, "a|b": ErrName, `a"b`: ErrName,
		"a\nb": ErrName, "a\x1b[2Jb": ErrName, "a\x7f": ErrName, "\u202egpj.exe": ErrName, "li\u200cb": ErrName, "\ufeffa": ErrName,
		"a.": ErrName, "a ": ErrName, "d./x": ErrName, "d /x": ErrName, "...": ErrName, ".. /x": ErrName,
		"a\xff": ErrName,
		"CON":   ErrReserved, "nul": ErrReserved, "d/Aux.txt": ErrReserved, "com1": ErrReserved, "LPT9.tar.gz": ErrReserved, "COM¹": ErrReserved,
		"prn /x": ErrName, "nul .txt": ErrReserved, "CONIN$": ErrReserved, "conout$": ErrReserved, "com0": ErrReserved, "con/x": ErrReserved,
		strings.Repeat("n", 256):                               ErrLong,
		strings.Repeat("d/", 65) + "x":                         ErrLong,
		strings.Repeat(strings.Repeat("d", 250)+"/", 17) + "x": ErrLong,
	} {
		all = append(all, named(t, fmt.Sprintf("name %.40q", name), Limits{}, name, reason, one{name: "good"}, one{name: name, body: "evil"})...)
	}
	for _, name := range []string{"a\x00b", ""} { // no tar can hold these
		all = append(all, attack{fmt.Sprintf("name %q zip", name), zipOf(t, one{name: name, body: "evil"}), Limits{}, name, ErrName, false})
	}
	return all
}

func refusedPairs(t *testing.T) (all []attack) {
	for _, pair := range []struct {
		first, second string
		reason        Reason
	}{
		{"bin/java", "bin/Java", ErrCase}, {"Lib/a", "lib/b", ErrCase}, {"lib/", "LIB/", ErrCase}, {"a", "A/x", ErrCase},
		{"größe", "gro\u0308ße", ErrCase}, {"GRÖẞE", "grösse", ErrCase}, {"ﬁle", "file", ErrCase}, {"\u212aelvin", "kelvin", ErrCase},
		{"σας", "ΣΑΣ", ErrCase}, {"ǅ", "ǆ", ErrCase}, {"\u1fb3", "αι", ErrCase}, {"İ", "i\u0307", ErrCase}, {"\uac00", "\u1100\u1161", ErrCase},
		{"a", "a", ErrDuplicate}, {"d/a", "d//a", ErrDuplicate}, {"a", "./a", ErrDuplicate}, {"d/", "d/", ErrDuplicate},
		{"a", "a/b", ErrClash}, {"a/b", "a", ErrClash}, {"a", "a/", ErrClash}, {"a/", "a", ErrClash},
	} {
		all = append(all, named(t, pair.first+" and "+pair.second, Limits{}, pair.second, pair.reason, one{name: pair.first}, one{name: pair.second})...)
	}
	return append(all, named(t, "a file for the directory", Limits{}, ".", ErrClash, one{name: "."})...)
}

func refusedLinks(t *testing.T) (all []attack) {
	for target, reason := range map[string]Reason{
		strings.Repeat("../", 1000): ErrLink, strings.Repeat("n", 255) + ":": ErrLong,
		"..": ErrLink, "../..": ErrLink, "../outside/precious": ErrLink, "a/../../x": ErrLink, "/etc/passwd": ErrLink, "": ErrLink,
		`C:\Windows`: ErrLink, "c:x": ErrLink, `\\server\share`: ErrLink, `..\..\x`: ErrName, "ab:c": ErrName, "NUL": ErrReserved,
		strings.Repeat("a/", 2048) + "x": ErrLong,
	} {
		all = append(all, named(t, fmt.Sprintf("link to %.30q", target), Limits{}, "l", reason, link("l", target))...)
	}
	all = append(all, attack{"link to a NUL zip", zipOf(t, link("l", "a\x00b")), Limits{}, "l", ErrName, false}) // no tar can hold it
	all = append(all, named(t, "link to the parent from below", Limits{}, "d/e/l", ErrLink, link("d/e/l", "../../../x"))...)
	all = append(all, named(t, "out through a link", Limits{}, "p/q/r/out", ErrLink, link("p/q/r/up", "../../.."), link("p/q/r/out", "up/../x"))...)
	all = append(all, named(t, "out through a link, listed later", Limits{}, "p/q/r/out", ErrLink, link("p/q/r/out", "up/../x"), link("p/q/r/up", "../../.."))...)
	all = append(all, named(t, "out through a link in other letters", Limits{}, "p/q/r/out", ErrLink, link("p/q/r/up", "../../.."), link("p/q/r/out", "UP/../x"))...)
	all = append(all, named(t, "out by its text alone", Limits{}, "out", ErrLink, link("deep", "p/q"), one{name: "p/q/f"}, link("out", "deep/../../p"))...)
	all = append(all, named(t, "out through three links", Limits{}, "p/q/r/out", ErrLink,
		link("p/q/r/one", "two"), link("p/q/r/two", "../../three"), link("p/three", ".."), link("p/q/r/out", "one/../x"))...)
	all = append(all, named(t, "a file through a link", Limits{}, "l/x", ErrClash, one{name: "d/"}, link("l", "d"), one{name: "l/x"})...)
	all = append(all, named(t, "a link through a link", Limits{}, "l/x", ErrClash, one{name: "d/"}, link("l", "d"), link("l/x", "y"))...)
	all = append(all, named(t, "a file for a link", Limits{}, "l", ErrClash, link("l", "d"), one{name: "l"})...)
	all = append(all, named(t, "a directory for a link", Limits{}, "l/", ErrClash, link("l", "d"), one{name: "l/"})...)
	all = append(all, named(t, "a link twice", Limits{}, "l", ErrDuplicate, link("l", "d"), link("l", "e"))...)

	hard := func(name, target string, before ...one) {
		archive := append(heads(before...), titled{Header: tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: target}})
		all = append(all, attack{"hard link to " + name, gz(t, tarHeaders(t, archive...)), Limits{}, "h", ErrHardLink, false})
	}
	hard("the outside", "../outside/precious")
	hard("a path of the system", "/etc/passwd")
	hard("nothing", "later")
	hard("itself", "h")
	hard("a directory", "d", one{name: "d/"})
	hard("the directory", ".")
	hard("a link", "l", link("l", "f"), one{name: "f"})
	hard("a file through a link", "l/f", one{name: "d/f"}, link("l", "d"))
	hard("a file in other letters", "F", one{name: "f"})
	for name, flag := range map[string]byte{"character device": tar.TypeChar, "block device": tar.TypeBlock, "fifo": tar.TypeFifo, "contiguous": tar.TypeCont, "of a vendor": 'V'} {
		all = append(all, attack{"special " + name, gz(t, tarHeaders(t, titled{Header: tar.Header{Typeflag: flag, Name: "s", Devmajor: 1, Devminor: 3}})), Limits{}, "s", ErrSpecial, false})
	}
	for _, mode := range []fs.FileMode{fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice, fs.ModeNamedPipe, fs.ModeSocket} {
		all = append(all, attack{fmt.Sprintf("special %v zip", mode), zipOf(t, one{name: "s", mode: mode | 0o666}), Limits{}, "s", ErrSpecial, false})
	}
	// A file whose name says that it is a directory.
	odd := plainTar(t, one{name: "dir", body: ""})
	copy(odd, "dir/")
	all = append(all, attack{"a file with a slash", gz(t, mend(odd)), Limits{}, "dir/", ErrClash, false})
	z := &rawZip{}
	z.list(z.local("dir/", 0, 0, sum([]byte("x")), 1, []byte("x")))
	return append(all, attack{"a directory with content", z.end(""), Limits{}, "dir/", ErrClash, false})
}

// mend sets the checksum of the first header of a tar.
func mend(data []byte) []byte {
	copy(data[148:156], "        ")
	total := 0
	for _, b := range data[:512] {
		total += int(b)
	}
	copy(data[148:156], fmt.Sprintf("%06o\x00 ", total))
	return data
}

func refusedBombs(t *testing.T) (all []attack) {
	zeros := strings.Repeat("\x00", 3<<20)
	all = append(all, named(t, "a thousand to one", Limits{}, "z", ErrRatio, one{name: "z", body: zeros})...)
	all = append(all, named(t, "many small ones of a thousand to one", Limits{}, "", ErrRatio,
		one{name: "a", body: zeros[:900_000]}, one{name: "b", body: zeros[:900_000]})...)
	all = append(all, named(t, "too many bytes", Limits{Bytes: 1000}, "b", ErrBytes, one{name: "a", body: zeros[:600]}, one{name: "b", body: zeros[:401]})...)
	all = append(all, named(t, "too many entries", Limits{Entries: 3}, "", ErrEntries, one{name: "a"}, one{name: "b"}, one{name: "c"}, one{name: "d"})...)
	all = append(all, named(t, "too many directories that are not listed", Limits{Entries: 4}, "", ErrEntries, one{name: "a/b/c/d/e"})...)
	all = append(all, named(t, "too deep", Limits{Depth: 3}, "a/b/c/d", ErrLong, one{name: "a/b/c/d"})...)

	// Entries that share their bytes: all of them, and one that quotes the head of the next (Fifield 2019).
	kernel := deflated(t, []byte(zeros[:100_000]))
	crc := sum([]byte(zeros[:100_000]))
	z := &rawZip{}
	r := z.local("a", 8, 0, crc, 100_000, kernel)
	for _, name := range []string{"a", "b", "c"} {
		r.name = name
		z.list(r)
	}
	all = append(all, attack{"overlap, full", z.end(""), Limits{}, "", ErrOverlap, false})

	inner := &rawZip{}
	inner.local("b", 8, 0, crc, 100_000, kernel)
	z = &rawZip{}
	quote := append([]byte{0, byte(inner.Len()), byte(inner.Len() >> 8), ^byte(inner.Len()), ^byte(inner.Len() >> 8)}, inner.Bytes()...)
	outer := z.local("a", 8, 0, crc, 100_000+inner.Len(), quote)
	z.list(outer)
	z.list(record{"b", 8, 0, crc, uint32(len(kernel)), 100_000, outer.offset + 30 + 1 + 5})
	all = append(all, attack{"overlap, quoted", z.end(""), Limits{}, "b", ErrOverlap, false})

	z = &rawZip{}
	r = z.local("a", 0, 0, 0, 10, make([]byte, 10))
	r.packed, r.unpack = 60, 60
	z.list(r)
	all = append(all, attack{"overlap with the directory", z.end(""), Limits{}, "a", ErrOverlap, false})

	// The directory says less than there is, and more than anybody has.
	z = &rawZip{}
	r = z.local("a", 8, 0, crc, 100_000, kernel)
	r.unpack = 10
	z.list(r)
	all = append(all, attack{"more than the directory says", z.end(""), Limits{}, "a", ErrCorrupt, true})
	z = &rawZip{}
	r = z.local("a", 8, 0, crc, 100_000, kernel)
	r.unpack = 1<<32 - 2
	z.list(r)
	all = append(all, attack{"the directory says 4 GiB", z.end(""), Limits{}, "a", ErrBytes, false})

	all = append(all, attack{"sparse, a terabyte", gz(t, sparseTar(t, 1<<40)), Limits{}, "sparse", ErrBytes, false})
	all = append(all, attack{"sparse, a gibibyte", gz(t, sparseTar(t, 1<<30)), Limits{}, "sparse", ErrRatio, false})
	all = append(all, attack{"a gzip of nothing", gz(t, nil), Limits{}, "", ErrTruncated, false})

	// Copies by hard links count.
	links := heads(one{name: "f", body: zeros[:600]})
	links = append(links, titled{Header: tar.Header{Typeflag: tar.TypeLink, Name: "g", Linkname: "f"}})
	all = append(all, attack{"hard links", gz(t, tarHeaders(t, links...)), Limits{Bytes: 1000}, "g", ErrBytes, false})

	// Headers about headers that never come to a file: 20 MB of them in a few kB.
	var comment titled
	comment.Header = tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": strings.Repeat("c", 1<<19)}}
	all = append(all, attack{"headers without end", gz(t, tarHeaders(t, slices.Repeat([]titled{comment}, 40)...)), Limits{Entries: 10}, "", ErrEntries, false})

	// What links lead to: each is long, and all of them are alike.
	var long []one
	for i := range 9000 {
		long = append(long, link(fmt.Sprint(i), strings.Repeat(strings.Repeat("n", 250)+"/", 16)))
	}
	return append(all, named(t, "names without end", Limits{}, "", ErrEntries, long...)...)
}

func refusedDamage(t *testing.T) (all []attack) {
	add := func(name string, archive []byte, entry string, reason Reason, late bool) {
		all = append(all, attack{name, archive, Limits{}, entry, reason, late})
	}
	good := zipOf(t, one{name: "a", body: strings.Repeat("abc", 500)}, one{name: "b", body: "x"})
	goodTar := plainTar(t, one{name: "a", body: strings.Repeat("abc", 500)}, one{name: "b", body: "x"})
	tgz := gz(t, goodTar)
	garbage := []byte("#!/bin/sh\necho hello\n")

	add("empty", nil, "", ErrFormat, false)
	add("three bytes", []byte("PK\x03"), "", ErrFormat, false)
	add("text", []byte(strings.Repeat("this is a page that says 404\n", 100)), "", ErrFormat, false)
	add("plain tar", goodTar, "", ErrFormat, false)
	add("gzip of something else", gz(t, bytes.Repeat([]byte("hello "), 1000)), "", ErrCorrupt, false)
	add("zip with a stub before it", slices.Concat(garbage, good), "", ErrPrepended, false)
	add("zip after a zip", slices.Concat(good, good), "", ErrPrepended, false)
	add("zip with garbage after it", slices.Concat(good, garbage), "", ErrTrailing, false)
	add("zip with zeros after it", slices.Concat(good, make([]byte, 100)), "", ErrTrailing, false)
	add("zip without its end", good[:len(good)-30], "", ErrTruncated, false)
	add("tar.gz with garbage after it", slices.Concat(tgz, garbage), "", ErrTrailing, false)
	add("tar.gz with a byte after it", append(slices.Clone(tgz), 0), "", ErrTrailing, false)
	add("tar.gz after a tar.gz", slices.Concat(tgz, tgz), "", ErrTrailing, false)
	add("tar with garbage after it", gz(t, slices.Concat(goodTar, garbage)), "", ErrTrailing, false)
	add("tar without its end", gz(t, goodTar[:len(goodTar)-1024]), "", ErrTruncated, false)
	add("tar without half of its end", gz(t, goodTar[:len(goodTar)-512]), "", ErrTruncated, false)
	add("tar that ends in a file", gz(t, goodTar[:700]), "a", ErrTruncated, false)
	add("gzip that ends early", tgz[:len(tgz)-3], "", ErrTruncated, false)

	wrong := slices.Clone(tgz)
	wrong[len(wrong)-6] ^= 1
	add("gzip with a wrong checksum", wrong, "", ErrChecksum, false)
	odd := slices.Clone(goodTar)
	odd[0] = 'A'
	add("tar with a wrong checksum", gz(t, odd), "", ErrCorrupt, false)

	entry := func(name string, method, flags uint16, crc uint32, size int, content []byte, reason Reason, late bool) {
		z := &rawZip{}
		z.list(z.local("good", 0, 0, sum([]byte("x")), 1, []byte("x")))
		z.list(z.local("a", method, flags, crc, size, content))
		add(name, z.end(""), "a", reason, late)
	}
	body := []byte("body")
	entry("encrypted", 0, 1, sum(body), 4, body, ErrEncrypted, false)
	entry("encrypted strongly", 0, 1<<6, sum(body), 4, body, ErrEncrypted, false)
	entry("bzip2", 12, 0, sum(body), 4, body, ErrMethod, false)
	entry("encrypted by AES", 99, 0, sum(body), 4, body, ErrMethod, false)
	entry("wrong checksum", 0, 0, sum(body)^1, 4, body, ErrChecksum, true)
	entry("checksum of zero", 0, 0, 0, 4, body, ErrChecksum, true)
	entry("shorter than it says", 8, 0, sum(body), 5, deflated(t, body), ErrTruncated, true)
	entry("longer than it says", 8, 0, sum(body), 3, deflated(t, body), ErrCorrupt, true)
	entry("half of its content", 8, 0, sum(body), 4, deflated(t, body)[:4], ErrTruncated, true)
	entry("no deflate", 8, 0, sum(body), 4, []byte("\xff\xff\xff\xff"), ErrCorrupt, true)

	change := func(name string, at int, value uint16, reason Reason) {
		z := &rawZip{}
		z.list(z.local("a", 0, 0, sum(body), 4, body))
		data := z.end("")
		binary.LittleEndian.PutUint16(data[len(data)-endLen+at:], value)
		add(name, data, "", reason, false)
	}
	change("one of several parts", 4, 1, ErrCorrupt)
	change("more in the directory than there is", 10, 2, ErrCorrupt)
	change("less in the directory than there is", 10, 0, ErrCorrupt)
	change("a larger directory", 12, 60, ErrCorrupt)
	change("a smaller directory", 12, 30, ErrPrepended)
	change("a later directory", 16, 1<<15, ErrCorrupt)
	change("an earlier directory", 16, 3, ErrPrepended)
	change("a comment that is not there", 20, 5, ErrTruncated)

	z := &rawZip{}
	r := z.local("a", 0, 0, sum(body), 4, body)
	r.offset = 7
	z.list(r)
	add("nothing where the directory says", z.end(""), "a", ErrCorrupt, false)
	far := zipOf(t, one{name: "a", body: "body"})
	far = wide(far, 1<<63+7)
	add("an entry before the start of the file", far, "a", ErrTruncated, false)
	z = &rawZip{}
	z.list(z.local("a", 0, 0, sum(body), 4, body))
	return append(all, attack{"an end in the comment", z.end(endMagic + string(make([]byte, endLen-4))), Limits{}, "", ErrPrepended, false})
}

// wide gives the only entry of a zip a place in 64 bits.
func wide(data []byte, offset uint64) []byte {
	at := bytes.LastIndex(data, []byte(centralMagic))
	end := bytes.LastIndex(data, []byte(endMagic))
	directory, last := slices.Clone(data[at:end]), slices.Clone(data[end:])
	binary.LittleEndian.PutUint16(directory[30:], 12)
	binary.LittleEndian.PutUint32(directory[42:], 1<<32-1)
	name := binary.LittleEndian.Uint16(directory[28:])
	extra := binary.LittleEndian.AppendUint64([]byte{1, 0, 8, 0}, offset)
	directory = slices.Insert(directory, centralLen+int(name), extra...)
	binary.LittleEndian.PutUint32(last[12:], uint32(len(directory)))
	return slices.Concat(data[:at], directory, last)
}

// An entry with "../" or an absolute path must not write outside of the target directory (statement 95 of the
// requirements), and neither may anything else that an archive can hold.
func TestAttacksAreRefusedEachWithItsReason(t *testing.T) {
	for _, a := range slices.Concat(refusedNames(t), refusedPairs(t), refusedLinks(t), refusedBombs(t), refusedDamage(t)) {
		t.Run(a.name, func(t *testing.T) {
			p := newPlace(t, a.archive)
			check := func(what string, err error) {
				t.Helper()
				var refused *EntryError
				if !errors.As(err, &refused) || !errors.Is(err, a.reason) {
					t.Fatalf("%s: %v; want: %v", what, err, a.reason)
				}
				if refused.Archive != p.archive || refused.Reason != a.reason || a.entry != "" && refused.Entry != a.entry {
					t.Errorf("%s: archive %q, entry %.80q, reason %q; want entry %.80q", what, refused.Archive, refused.Entry, refused.Reason, a.entry)
				}
				if text := err.Error(); strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) || len(text) > 1000 {
					t.Errorf("%s: not for a log: %q", what, text)
				}
				if refused.Hint() == "" {
					t.Errorf("%s: no hint", what)
				}
			}
			check("into", Into(t.Context(), p.archive, p.dir, a.limits))
			p.gone(t)
			p.untouched(t)
			if _, _, err := Size(t.Context(), p.archive, a.limits); !a.late {
				check("size", err)
			} else if err != nil {
				t.Errorf("size: %v", err)
			}
		})
	}
}

// Whatever is cut off: the whole archive is refused.
func TestEveryTruncationIsRefused(t *testing.T) {
	entries := []one{{name: "d/"}, {name: "d/a", body: strings.Repeat("abc", 50)}, {name: "b", body: "x"}}
	for format, data := range map[string][]byte{"zip": zipOf(t, entries...), "tar.gz": tgzOf(t, entries...)} {
		p := newPlace(t, nil)
		for n := range data {
			if err := os.WriteFile(p.archive, data[:n], 0o600); err != nil {
				t.Fatal(err)
			}
			var refused *EntryError
			if err := Into(t.Context(), p.archive, p.dir, Limits{}); !errors.As(err, &refused) {
				t.Fatalf("%s: %d bytes of %d: %v", format, n, len(data), err)
			}
			p.gone(t)
		}
	}
}

// Whatever is changed: the archive is refused, or what comes out is sound.
func TestEveryChangedByteIsRefusedOrHarmless(t *testing.T) {
	entries := []one{{name: "d/"}, {"d/a", 0o755, strings.Repeat("abc", 50)}, {name: "b", body: "x"}, {name: "c/d/e", body: "y"}}
	for format, data := range map[string][]byte{"zip": zipOf(t, entries...), "tar.gz": tgzOf(t, entries...)} {
		p := newPlace(t, data)
		refusals := 0
		for n := range data {
			for _, flip := range []byte{0x01, 0x80} {
				changed := slices.Clone(data)
				changed[n] ^= flip
				if err := os.WriteFile(p.archive, changed, 0o644); err != nil {
					t.Fatal(err)
				}
				if err := Into(t.Context(), p.archive, p.dir, Limits{}); err != nil {
					var refused *EntryError
					if !errors.As(err, &refused) {
						t.Errorf("%s: byte %d: %v", format, n, err)
					}
					refusals++
					p.gone(t)
				} else {
					sound(t, p.dir)
					if err := os.RemoveAll(p.dir); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if err := os.WriteFile(p.archive, data, 0o644); err != nil {
			t.Fatal(err)
		}
		p.untouched(t)
		t.Logf("%s: %d of %d changes refused", format, refusals, 2*len(data))
	}
}

func TestLimitsHoldExactly(t *testing.T) {
	entries := []one{{name: "d/a", body: strings.Repeat("x", 600)}, {name: "b", body: strings.Repeat("y", 400)}}
	for format, data := range map[string][]byte{"zip": zipOf(t, entries...), "tar.gz": tgzOf(t, entries...)} {
		p := newPlace(t, data)
		if err := Into(t.Context(), p.archive, p.dir, Limits{Bytes: 1000, Entries: 3, Depth: 2, Ratio: 1}); err != nil {
			t.Errorf("%s: %v", format, err)
		}
		if bytes, count, err := Size(t.Context(), p.archive, Limits{}); err != nil || bytes != 3*block || count != 3 {
			t.Errorf("%s: %d bytes, %d entries, %v", format, bytes, count, err)
		}
		for reason, l := range map[Reason]Limits{ErrBytes: {Bytes: 999}, ErrEntries: {Entries: 2}, ErrLong: {Depth: 1}} {
			if _, _, err := Size(t.Context(), p.archive, l); !errors.Is(err, reason) {
				t.Errorf("%s: %v; want: %v", format, err, reason)
			}
		}
	}
}

// A zip of many entries has a larger record at its end.
func TestZipOfManyEntries(t *testing.T) {
	entries := make([]one, 1<<16+5)
	for i := range entries {
		entries[i].name = fmt.Sprintf("d%d/%d", i%100, i)
	}
	p := newPlace(t, zipOf(t, entries...))
	if _, count, err := Size(t.Context(), p.archive, Limits{}); err != nil || count != len(entries)+100 {
		t.Errorf("%d entries, %v", count, err)
	}
	if _, _, err := Size(t.Context(), p.archive, Limits{Entries: 1 << 16}); !errors.Is(err, ErrEntries) {
		t.Error(err)
	}
}

// fuzzed unpacks what a fuzzer made, and holds it against everything that must never be.
func fuzzed(t *testing.T, p *place, data []byte) {
	if err := os.WriteFile(p.archive, data, 0o644); err != nil {
		t.Fatal(err)
	}
	p.before = listing(t, p.top, p.dir)
	limits := Limits{Bytes: 1 << 20, Entries: 50, Depth: 8}
	size, count, serr := Size(t.Context(), p.archive, limits)
	err := Into(t.Context(), p.archive, p.dir, limits)
	p.untouched(t)
	if err != nil {
		var refused *EntryError
		if !errors.As(err, &refused) {
			t.Errorf("neither good nor refused: %v", err)
		}
		p.gone(t)
		return
	}
	bytes, entries := sound(t, p.dir)
	if bytes > limits.Bytes || entries > limits.Entries {
		t.Errorf("%d bytes in %d entries", bytes, entries)
	}
	if serr != nil || entries != count || size < bytes || size > bytes+int64(entries)*block {
		t.Errorf("%d bytes in %d entries; Size says %d in %d, %v", bytes, entries, size, count, serr)
	}
	for _, goos := range []string{"linux", "darwin", "windows"} {
		if root, err := JDK(p.dir, goos); err == nil && root != p.dir && filepath.Dir(root) != p.dir {
			t.Errorf("a JDK at %s", root)
		}
	}
	if err := os.RemoveAll(p.dir); err != nil {
		t.Fatal(err)
	}
}

func FuzzIntoZip(f *testing.F) {
	f.Add(zipOf(f, linux()...))
	f.Add(zipOf(f, macos()...))
	f.Add(zipOf(f, link("p/q/up", "../.."), link("p/q/out", "up/x")))
	p := newPlace(f, nil)
	f.Fuzz(func(t *testing.T, data []byte) { fuzzed(t, p, data) })
}

// FuzzIntoTar gets the tar without its gzip, whose checksum no fuzzer would guess.
func FuzzIntoTar(f *testing.F) {
	f.Add(plainTar(f, windows()...))
	f.Add(plainTar(f, macos()...))
	f.Add(plainTar(f, link("p/q/up", "../.."), link("p/q/out", "up/x")))
	f.Add(sparseTar(f, 5000))
	p := newPlace(f, nil)
	f.Fuzz(func(t *testing.T, data []byte) { fuzzed(t, p, gz(t, data)) })
}

func FuzzElements(f *testing.F) {
	for _, name := range []string{"a/b", "../x", "C:x", "nul.txt", "größe", "./", "a//b/"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		path, bad := elements(name, 64)
		if bad != nil {
			return
		}
		joined := strings.Join(path, "/")
		if joined != "" && (!fs.ValidPath(joined) || !filepath.IsLocal(filepath.FromSlash(joined))) {
			t.Errorf("%q is %q", name, path)
		}
		for _, part := range path {
			if key := fold(part); fold(key) != key || fold(strings.ToLower(part)) != key && fold(strings.ToUpper(part)) != key {
				t.Errorf("%q folds to %q, and that to %q", part, key, fold(key))
			}
		}
	})
}
