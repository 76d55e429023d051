// Package cfb: OLE compound files: named streams in one file, the container of .msi.
//
// It knows what [MS-CFB] says of version 3 (written) and of versions 3 and 4 (read), and nothing of what is in the streams.
//
// [MS-CFB]: https://learn.microsoft.com/openspecs/windows_protocols/ms-cfb
package cfb
