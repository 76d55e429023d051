// Package fetch: one file from a server, whole and checked, or not at all.
//
// [File] writes to PATH.part, with what it knows about the file in PATH.part.json beside it, and renames that to PATH when it is
// complete, has the digest that the server announced, and is forced to the disk. What is at PATH before stays there until
// then: the original agent compared digests after the rename, and kept what was damaged (weakness W-02), and it waited for a
// silent server for ever (W-03). A download that was cut off goes on where it stopped when the server can do that and
// still has the same file; BK-CI's own server cannot, and begins again (protocol §1.6.6).
package fetch
