package xar

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1" //nolint:gosec // what the form has; it protects nothing
	"encoding/binary"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// File is one entry of an archive that is written.
type File struct {
	Name   string // "Distribution", "agent.pkg", "agent.pkg/Bom": a directory comes before what is in it
	Mode   uint32 // permission bits
	Dir    bool
	Data   []byte
	Stored bool // not compressed: what is already
}

// The parts of the form.
const (
	magic      = "xar!"
	headerSize = 28
	version    = 1
	sumSHA1    = 1
	styleSHA1  = "sha1"
	styleZlib  = "application/x-gzip" // which is zlib, not gzip
	stylePlain = "application/octet-stream"
)

// Write writes an archive. All its times are the one given; everything belongs to root:wheel.
func Write(w io.Writer, at time.Time, files []File) error {
	var heap bytes.Buffer
	heap.Write(make([]byte, sha1.Size)) // of the checksum of the table
	var toc bytes.Buffer
	toc.WriteString(xml.Header)
	stamp := at.UTC().Format("2006-01-02T15:04:05")
	fmt.Fprintf(&toc, "<xar>\n <toc>\n  <creation-time>%s</creation-time>\n  <checksum style=\"%s\">\n   <offset>0</offset>\n   <size>%d</size>\n  </checksum>\n", stamp, styleSHA1, sha1.Size)
	var open []string // directories that entries are written into
	there := map[string]bool{}
	for i, f := range files {
		dir, base := path.Split(f.Name)
		dir = strings.TrimSuffix(dir, "/")
		if base == "" || path.Clean(f.Name) != f.Name || strings.HasPrefix(f.Name, "/") || base == ".." || there[f.Name] {
			return fmt.Errorf("write xar: the name %q, or twice", f.Name)
		}
		there[f.Name] = true
		for len(open) > 0 && open[len(open)-1] != dir {
			open = open[:len(open)-1]
			toc.WriteString("  </file>\n")
		}
		if dir != "" && len(open) == 0 {
			return fmt.Errorf("write xar: %s comes without its directory", f.Name)
		}
		fmt.Fprintf(&toc, "  <file id=\"%d\">\n", i+1)
		if !f.Dir {
			if err := f.store(&heap, &toc); err != nil {
				return fmt.Errorf("write xar: %s: %w", f.Name, err)
			}
		}
		for _, name := range []string{"ctime", "mtime", "atime"} {
			fmt.Fprintf(&toc, "   <%s>%sZ</%s>\n", name, stamp, name)
		}
		kind := "file"
		if f.Dir {
			kind = "directory"
		}
		fmt.Fprintf(&toc, "   <group>wheel</group>\n   <gid>0</gid>\n   <user>root</user>\n   <uid>0</uid>\n   <mode>%04o</mode>\n   <type>%s</type>\n   <name>", f.Mode&0o7777, kind)
		if err := xml.EscapeText(&toc, []byte(base)); err != nil {
			return fmt.Errorf("write xar: %s: %w", f.Name, err)
		}
		toc.WriteString("</name>\n")
		if f.Dir {
			open = append(open, f.Name)
			continue
		}
		toc.WriteString("  </file>\n")
	}
	for range open {
		toc.WriteString("  </file>\n")
	}
	toc.WriteString(" </toc>\n</xar>\n")

	packed, err := deflate(toc.Bytes())
	if err != nil {
		return fmt.Errorf("write xar: %w", err)
	}
	sum := sha1.Sum(packed) //nolint:gosec // see above
	copy(heap.Bytes(), sum[:])
	head := []byte(magic)
	head = binary.BigEndian.AppendUint16(head, headerSize)
	head = binary.BigEndian.AppendUint16(head, version)
	head = binary.BigEndian.AppendUint64(head, uint64(len(packed)))
	head = binary.BigEndian.AppendUint64(head, uint64(toc.Len()))
	head = binary.BigEndian.AppendUint32(head, sumSHA1)
	for _, part := range [][]byte{head, packed, heap.Bytes()} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// store puts the content into the heap and says in the table where it is.
func (f File) store(heap, toc *bytes.Buffer) error {
	packed, style := f.Data, stylePlain
	if !f.Stored {
		var err error
		if packed, err = deflate(f.Data); err != nil {
			return err
		}
		style = styleZlib
	}
	sum := func(b []byte) string { s := sha1.Sum(b); return hex.EncodeToString(s[:]) } //nolint:gosec // see above
	fmt.Fprintf(toc, "   <data>\n    <length>%d</length>\n    <offset>%d</offset>\n    <size>%d</size>\n    <encoding style=\"%s\"/>\n", len(packed), heap.Len(), len(f.Data), style)
	fmt.Fprintf(toc, "    <extracted-checksum style=\"%s\">%s</extracted-checksum>\n    <archived-checksum style=\"%s\">%s</archived-checksum>\n   </data>\n", styleSHA1, sum(f.Data), styleSHA1, sum(packed))
	heap.Write(packed)
	return nil
}

func deflate(b []byte) ([]byte, error) {
	var out bytes.Buffer
	z, err := zlib.NewWriterLevel(&out, zlib.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(b); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
