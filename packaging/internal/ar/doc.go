// Package ar: the archive that a .deb is, read.
package ar
