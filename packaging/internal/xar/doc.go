// Package xar: The extensible archive ("xar!"), the container of installer packages of macOS.
//
// A header of 28 bytes, a table of contents in XML behind zlib, and a heap. Checksums are SHA-1 as in Apple's own packages:
// they find damage, and the reader in the libarchive of today knows no other. A signature is what protects a package.
package xar
