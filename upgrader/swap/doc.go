// Package swap: crash-safe replacement of one file or one directory.
package swap
