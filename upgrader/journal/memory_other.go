//go:build !linux

package journal

// memoryOf is 0: nobody asks for it here.
func memoryOf(int) int64 { return 0 }
