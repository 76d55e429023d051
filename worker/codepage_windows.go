package worker

import (
	"unicode/utf8"
	"unsafe"

	win "golang.org/x/sys/windows"
)

// encode writes a batch file in the code page that cmd.exe will read it with.
func encode(text, charset string) []byte {
	page := uint32(codePage(charset)) // 0 is CP_ACP, the system's own
	if page == 65001 || text == "" {
		return []byte(text)
	}
	wide, err := win.UTF16FromString(text)
	if err != nil {
		return []byte(text)
	}
	wide = wide[:len(wide)-1]
	convert := win.NewLazySystemDLL("kernel32.dll").NewProc("WideCharToMultiByte")
	out := make([]byte, 4*len(wide))
	n, _, _ := convert.Call(uintptr(page), 0, uintptr(unsafe.Pointer(&wide[0])), uintptr(len(wide)),
		uintptr(unsafe.Pointer(&out[0])), uintptr(len(out)), 0, 0)
	if n == 0 {
		return []byte(text)
	}
	return out[:n]
}

// decode makes UTF-8 of a line of output. Many programs write UTF-8 whatever the console says, so that is tried first.
func decode(line, charset string) string {
	if line == "" || utf8.ValidString(line) {
		return line
	}
	raw := []byte(line)
	wide := make([]uint16, len(raw))
	n, err := win.MultiByteToWideChar(uint32(codePage(charset)), 0, &raw[0], int32(len(raw)), &wide[0], int32(len(wide)))
	if err != nil || n <= 0 {
		return line
	}
	return win.UTF16ToString(wide[:n])
}
