// Command badversion is a new version of an agent that is none: it tells a version, and otherwise does what is appended to its
// program.
package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

func main() {
	if len(os.Args) > 1 && (os.Args[1] == "version" || os.Args[1] == "fullVersion") {
		fmt.Println("v9.9.9")
		return
	}
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		panic(err)
	}
	_, how, _ := bytes.Cut(data[len(data)-40:], []byte("\nbroken:"))
	switch strings.TrimSpace(string(how)) {
	case "exit0":
		return
	case "silent": // its keeper thinks that it is well
		for {
			tell("READY=1\nSTATUS=all is well\nWATCHDOG=1")
			time.Sleep(time.Second)
		}
	}
	os.Exit(3)
}

func tell(text string) {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = conn.Write([]byte(text))
}
