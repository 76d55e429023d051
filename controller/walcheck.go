package controller

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// damagedLogSuffix follows the data base's name in that of the copy of a write-ahead log that is damaged in the middle. There is one
// at most.
const damagedLogSuffix = "-wal.damaged"

// Of SQLite's write-ahead log: https://sqlite.org/fileformat2.html, section 4.
const (
	logHeader   = 32
	frameHeader = 24
	logMagic    = 0x377f0682 // plus one where the checksums are of big-endian words
	// spilled is how many frames a transaction has at least before SQLite may have written some of them before its end: it does that
	// when 2 MB of changed pages have gathered. Half of that, to be on the safe side.
	spilled = 250
)

// logState is what a write-ahead log holds, as SQLite will see it, and what it will not see.
type logState struct {
	good   int64 // commits that are whole
	at     int64 // where what SQLite reads ends, bytes
	behind int64 // commits from there on, whose frames are of the same generation
	torn   bool  // the first of them may never have come to its end
}

// lost reports whether commits that had come to their end are behind damage.
//
// A process that is killed leaves no such thing. It leaves frames without a commit, also behind others, when it rolled back or was killed in
// the middle of a large change, and went on with a smaller one after its start; those have the same salts, and are no commits. It
// can leave the header of a last frame without its page; nothing is behind that. And a large change that was killed at its end can have
// a commit frame behind checksums that are not yet right: that one commit is not counted.
//
// A power cut can leave what looks like damage: the end of the log that was not yet on the disk, of which later parts were written first. Commits in it
// were not acknowledged. Nobody can tell the two apart by the bytes, so that this is said, and is no reason not to start.
func (s logState) lost() bool { return s.behind > 1 || s.behind == 1 && !s.torn }

// readWriteAheadLog walks through a write-ahead log from its begin to its end, and holds one frame of it in memory. page is the page size for
// a log whose header is damaged, 0 when nobody knows.
func readWriteAheadLog(r io.Reader, page int64) (s logState, err error) {
	in := bufio.NewReaderSize(r, 1<<20)
	head := make([]byte, logHeader)
	if _, err := io.ReadFull(in, head); err != nil {
		return s, unlessShort(err)
	}
	s.at = logHeader
	magic, size := binary.BigEndian.Uint32(head), int64(binary.BigEndian.Uint32(head[8:]))
	sum := frameSum{order: binary.LittleEndian}
	if magic&1 == 1 {
		sum.order = binary.BigEndian
	}
	sum.add(head[:24])
	whole := magic&^1 == logMagic && sum.is(head[24:])
	salts := string(head[16:24])
	if !whole {
		size, salts, s.at = page, "", 0 // the salts of the first frame are those of all
	}
	if size < 512 || size > 65536 || size&(size-1) != 0 {
		return s, nil
	}
	frame := make([]byte, frameHeader+size)
	since := int64(0)  // frames since the last commit
	broken := int64(0) // frames from the first one that SQLite does not take
	var last []byte    // the sum of the frame before
	for at := int64(logHeader); ; at += int64(len(frame)) {
		if _, err := io.ReadFull(in, frame); err != nil {
			return s, unlessShort(err) // a last frame that is not whole was never finished
		}
		if salts == "" {
			salts = string(frame[8:16])
		}
		same := string(frame[8:16]) == salts && binary.BigEndian.Uint32(frame) != 0
		commit := same && binary.BigEndian.Uint32(frame[4:]) != 0
		if whole && broken == 0 {
			since++
			sum.add(frame[:8])
			sum.add(frame[frameHeader:])
			if same && sum.is(frame[16:]) {
				if commit {
					s.good, since, s.at = s.good+1, 0, at+int64(len(frame))
				}
				continue
			}
			since--
		}
		broken++
		if !whole { // foreign bytes can be anything: what counts follows the frame before it
			commit = commit && last != nil && follows(frame, last)
			last = append(last[:0], frame[16:frameHeader]...)
		}
		if commit {
			if s.behind++; s.behind == 1 && whole {
				// Its own frame, or one of many that SQLite was writing anew.
				s.torn = broken == 1 || since+broken >= spilled
			}
		}
	}
}

// unlessShort is nil for the end of a file, wherever it is.
func unlessShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// frameSum is the checksum of a write-ahead log, which goes on from frame to frame.
type frameSum struct {
	order  binary.ByteOrder
	s0, s1 uint32
}

// add goes on with bytes, a multiple of eight.
func (c *frameSum) add(p []byte) {
	for ; len(p) >= 8; p = p[8:] {
		c.s0 += c.order.Uint32(p) + c.s1
		c.s1 += c.order.Uint32(p[4:]) + c.s0
	}
}

// follows reports whether a frame's checksum is the one after another's, in either order of bytes.
func follows(frame, last []byte) bool {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		sum := frameSum{order, binary.BigEndian.Uint32(last), binary.BigEndian.Uint32(last[4:])}
		sum.add(frame[:8])
		sum.add(frame[frameHeader:])
		if sum.is(frame[16:]) {
			return true
		}
	}
	return false
}

// is reports whether the sum is the one that is written at p.
func (c *frameSum) is(p []byte) bool {
	return binary.BigEndian.Uint32(p) == c.s0 && binary.BigEndian.Uint32(p[4:]) == c.s1
}

// writeAheadLog looks at the log beside a data base that nobody has open. It changes nothing.
func writeAheadLog(path string) (logState, error) {
	f, err := os.Open(path + "-wal")
	if errors.Is(err, fs.ErrNotExist) {
		return logState{}, nil
	}
	if err != nil {
		return logState{}, err
	}
	defer func() { _ = f.Close() }()
	page, err := pageSize(path)
	if err != nil {
		return logState{}, err
	}
	return readWriteAheadLog(f, page)
}

// pageSize is the one in the header of a data base, 0 where there is none.
func pageSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	var h [18]byte
	if _, err := io.ReadFull(f, h[:]); err != nil {
		return 0, unlessShort(err)
	}
	if page := int64(binary.BigEndian.Uint16(h[16:])); page != 1 {
		return page, nil
	}
	return 65536, nil
}

// keepDamagedLog puts a copy of a damaged write-ahead log aside before SQLite writes over what it does not see, where there is room for it. Of
// two damaged logs the later one is kept.
func keepDamagedLog(path string) (kept string, err error) {
	from, err := os.Open(path + "-wal")
	if err != nil {
		return "", err
	}
	defer func() { _ = from.Close() }()
	info, err := from.Stat()
	if err != nil {
		return "", err
	}
	kept = path + damagedLogSuffix
	half := kept + ".new"
	if err := os.Remove(half); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := roomFor(filepath.Dir(path), uint64(info.Size())+reserveMost); err != nil {
		return "", err
	}
	to, err := os.OpenFile(half, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(to, io.LimitReader(from, info.Size()))
	if err = errors.Join(err, to.Sync(), to.Close()); err == nil {
		err = os.Rename(half, kept)
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(half))
	}
	return kept, nil
}

// tellOfDamagedLog says that commits are lost, and keeps what is left of them when the log is about to be written. found is of a log that
// nobody has opened since.
func tellOfDamagedLog(path string, found logState, keep bool, log *slog.Logger) {
	args := []any{"path", path + "-wal", "after", found.at, "lost", found.behind}
	if keep {
		kept, err := keepDamagedLog(path)
		if err == nil {
			args = append(args, "copy", kept)
		} else {
			args = append(args, "err", fmt.Errorf("keep a copy of it: %w", err))
		}
	}
	log.Warn("The data base's write-ahead log is damaged: what was committed behind the damage is lost", append(args, "hint", damagedLogHint)...)
}

// damagedLogHint says what to make of it.
const damagedLogHint = "after a power cut these may be changes that nobody was told of; otherwise look at the disk, call devopsController check, and see whether the last builds and settings are there; remove the copy when it is of no more use"

// openAnew opens a data base whose write-ahead log is damaged, and lets it begin a new log, so that the next start does not find the
// same damage behind what was committed since.
func openAnew(path string, log *slog.Logger) (*store, error) {
	st, err := openFile(path, log)
	if err != nil {
		return nil, err
	}
	if err := st.checkpoint(context.Background()); err != nil {
		log.Warn("The damaged write-ahead log could not be begun anew", "path", path+"-wal", "err", err)
	}
	return st, nil
}
