package host

import (
	"fmt"

	win "golang.org/x/sys/windows"
)

// osVersion asks the kernel: GetVersion lies to programs without a manifest.
func osVersion() string {
	v := win.RtlGetVersion()
	kind := "Windows"
	if v.ProductType != 1 { // VER_NT_WORKSTATION
		kind = "Windows Server"
	}
	return fmt.Sprintf("%s %d.%d.%d", kind, v.MajorVersion, v.MinorVersion, v.BuildNumber)
}
