// Package macho: Programs of macOS for several processors in one file ("universal"), and what a package must know of them.
package macho
