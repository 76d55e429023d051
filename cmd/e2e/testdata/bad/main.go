// bad stands in for versions of an agent that are no good: it tells its version, and does what a file in the lab's directory says.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "version" {
		fmt.Println("v6.6.6")
		return
	}
	text, err := os.ReadFile(os.Getenv("LAB_DIR") + "/mode")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(9)
	}
	switch mode, value, _ := strings.Cut(strings.TrimSpace(string(text)), " "); mode {
	case "exit":
		code, _ := strconv.Atoi(value)
		fmt.Fprintln(os.Stderr, "devopsAgent: no luck today")
		os.Exit(code)
	case "crash":
		d, _ := time.ParseDuration(value)
		<-time.After(d)
		panic("lost after a while")
	case "hold":
		hold("runtime/agent")
		forever()
	}
	forever()
}

// hold takes a role as the original does.
func hold(name string) {
	f, err := os.OpenFile(name+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err == nil {
		err = os.WriteFile(name+".pid", []byte(strconv.Itoa(os.Getpid())), 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(9)
	}
	held = f
}

var held *os.File

func forever() {
	for {
		<-time.After(time.Hour)
	}
}
