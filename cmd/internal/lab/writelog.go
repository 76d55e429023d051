package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

// A write log is what QEMU's blklogwrites driver writes, in the format of Linux' dm-log-writes: a head, then entry after
// entry, each a head of one sector and its data.
const (
	logMagic  = 0x6a736677736872
	logHead   = 32
	tornBytes = 4096 // what a disk writes as a whole
)

// kinds of entries
const (
	logFlush = 1 << iota
	logFUA
	logDiscard
	logMark
)

type logEntry struct {
	sector, sectors, kind uint64
	at                    int64 // of its data, in the log
}

// Cut is what a power cut did to a disk.
type Cut struct {
	Writes, Flushes int // that the machine did since its start
	Unflushed       int // of the writes: those after the last flush
	Lost            int // of those: pieces of 4 KiB that did not reach the disk
}

// LosePower makes disk, which is as it was when the log began, what it is after a power cut at the end of the log: all that was
// flushed is there, and of each write after the last flush any piece of 4 KiB may be there or not, as seed has it. Seed 0 loses
// nothing.
func LosePower(disk, log string, seed uint64) (cut Cut, err error) {
	in, err := os.Open(log)
	if err != nil {
		return Cut{}, err
	}
	defer func() { _ = in.Close() }()
	entries, sector, err := readLog(in)
	if err != nil {
		return Cut{}, fmt.Errorf("%s: %w", log, err)
	}
	out, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return Cut{}, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()

	safe := 0
	for i, e := range entries {
		if e.kind&logFlush != 0 {
			cut.Flushes++
			safe = i
		}
	}
	rng := rand.New(rand.NewPCG(seed, seed)) //nolint:gosec // a test repeats itself
	buffer := make([]byte, tornBytes)
	for i, e := range entries {
		if e.sectors == 0 || e.kind&logMark != 0 {
			continue
		}
		cut.Writes++
		doubtful := i >= safe && e.kind&logFUA == 0
		if doubtful {
			cut.Unflushed++
		}
		for done, size := int64(0), int64(e.sectors)*sector; done < size; done += tornBytes {
			if doubtful && seed != 0 && rng.IntN(2) == 0 {
				cut.Lost++
				continue
			}
			piece := buffer[:min(tornBytes, size-done)]
			if e.kind&logDiscard != 0 {
				clear(piece)
			} else if _, err := in.ReadAt(piece, e.at+done); err != nil {
				return cut, fmt.Errorf("%s: %w", log, err)
			}
			if _, err := out.WriteAt(piece, int64(e.sector)*sector+done); err != nil {
				return cut, err
			}
		}
	}
	return cut, nil
}

// readLog lists the entries. The head's count lags behind when QEMU was killed: the log ends where no entry begins.
func readLog(in *os.File) (entries []logEntry, sector int64, err error) {
	head := make([]byte, logHead)
	if _, err := in.ReadAt(head, 0); err != nil || binary.LittleEndian.Uint64(head) != logMagic {
		return nil, 0, errors.Join(errors.New("no write log"), err)
	}
	sector = int64(binary.LittleEndian.Uint32(head[24:]))
	info, err := in.Stat()
	if err != nil {
		return nil, 0, err
	}
	for at := sector; ; {
		if _, err := in.ReadAt(head, at); errors.Is(err, io.EOF) {
			return entries, sector, nil
		} else if err != nil {
			return nil, 0, err
		}
		e := logEntry{binary.LittleEndian.Uint64(head), binary.LittleEndian.Uint64(head[8:]), binary.LittleEndian.Uint64(head[16:]), at + sector}
		if e.kind == 0 && e.sectors == 0 || e.kind >= logMark<<1 {
			return entries, sector, nil
		}
		at = e.at
		if e.kind&logDiscard == 0 {
			at += int64(e.sectors) * sector
		}
		if at > info.Size() { // QEMU was killed in it
			return entries, sector, nil
		}
		entries = append(entries, e)
	}
}
