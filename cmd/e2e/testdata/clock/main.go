// clock stands in for the login shell of a worker in benchmarks: it notes when it began, behaves like a worker that has
// done its work, and notes when it ends. It does what it does with as few means as possible, because its own start is
// part of what is measured.
package main

import (
	"os"
	"strconv"
	"time"
)

func main() {
	began := time.Now()
	lab, build := os.Getenv("LAB_DIR"), os.Getenv("BUILD_ID")
	notes, err := os.OpenFile(lab+"/clock."+build, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		fail(err)
	}
	note(notes, "began", began)
	// A file with a duration keeps all workers running for so long.
	if text, err := os.ReadFile(lab + "/hold"); err == nil {
		hold, err := time.ParseDuration(string(text))
		if err != nil {
			fail(err)
		}
		<-time.After(hold)
	}
	// An empty error file is what success looks like (protocol §3.6.5).
	if err := os.Truncate("build_tmp/"+build+"_"+os.Getenv("VM_SEQ_ID")+"_build_msg.log", 0); err != nil {
		fail(err)
	}
	note(notes, "ended", time.Now())
}

func note(f *os.File, what string, at time.Time) {
	if _, err := f.WriteString(what + " " + strconv.FormatInt(at.UnixNano(), 10) + "\n"); err != nil {
		fail(err)
	}
}

func fail(err error) {
	_, _ = os.Stderr.WriteString("clock: " + err.Error() + "\n")
	os.Exit(1)
}
