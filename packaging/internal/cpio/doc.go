// Package cpio: The portable ASCII form of cpio ("odc", POSIX.1-1988 "cpio"), in which installer packages of macOS have their files.
//
// Every number is octal text of a fixed width, so that the form has limits: 262143 entries, files of less than 8 GiB, ids
// below 262144.
package cpio
