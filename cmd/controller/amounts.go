package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// days is a flag's duration that may be in days, as in 90d or 1d12h; 0 is for ever.
type days time.Duration

// String is the shortest form of it.
func (d *days) String() string {
	const day = 24 * time.Hour
	if *d != 0 && time.Duration(*d)%day == 0 {
		return fmt.Sprintf("%dd", time.Duration(*d)/day)
	}
	return time.Duration(*d).String()
}

// Type is the flag's kind in the help text.
func (d *days) Type() string { return "duration" }

// Set reads a duration.
func (d *days) Set(text string) error {
	rest, sum := text, time.Duration(0)
	if text == "" {
		return errors.New("a duration, please: 90d, 36h or 1d12h")
	}
	if number, after, found := strings.Cut(text, "d"); found {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is no duration: 90d, 36h or 1d12h, please", text)
		}
		rest, sum = after, time.Duration(n)*24*time.Hour
	}
	if rest != "" {
		part, err := time.ParseDuration(rest)
		if err != nil || part < 0 {
			return fmt.Errorf("%q is no duration: 90d, 36h or 1d12h, please", text)
		}
		sum += part
	}
	*d = days(sum)
	return nil
}

// amount is a flag's number of bytes, as in 10GiB; 0 is no limit.
type amount int64

// String is the shortest exact form of it.
func (a *amount) String() string {
	for _, u := range units() {
		if n := int64(*a); n > 0 && n%u.size == 0 {
			return fmt.Sprintf("%d%s", n/u.size, u.name)
		}
	}
	return "0"
}

// Type is the flag's kind in the help text.
func (a *amount) Type() string { return "bytes" }

type unit struct {
	name string
	size int64
}

func units() []unit {
	return []unit{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}}
}

// Set reads a number of bytes.
func (a *amount) Set(text string) error {
	number, size := text, int64(1)
	for _, u := range units() {
		if rest, found := strings.CutSuffix(text, u.name); found {
			number, size = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !(n >= 0) || n*float64(size) >= 1<<62 {
		return fmt.Errorf("%q is no number of bytes: 10GiB or 500MB, please", text)
	}
	*a = amount(n * float64(size))
	return nil
}

// inBytes is a number of bytes for people to read.
func inBytes(n int64) string {
	switch {
	case n < 1e3:
		return fmt.Sprintf("%d B", n)
	case n < 1e6:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}
