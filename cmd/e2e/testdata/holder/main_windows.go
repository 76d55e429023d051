// Command holder keeps a file open and lets nobody rename or delete it, as a virus scanner does for a moment: until it is killed.
package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/windows"
)

func main() {
	name, err := windows.UTF16PtrFromString(os.Args[1])
	if err == nil {
		_, err = windows.CreateFile(name, windows.GENERIC_READ, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil, windows.OPEN_EXISTING, 0, 0)
	}
	if err != nil {
		fmt.Println("not held:", err)
		os.Exit(1)
	}
	fmt.Println("held")
	time.Sleep(time.Hour)
}
