// Package cab: Cabinets: files deflated in blocks of 32 KiB, the way .msi carries its files.
//
// It writes and reads one cabinet with one folder per compression, MSZIP or stored. [MS-CAB] describes the format.
//
// [MS-CAB]: https://learn.microsoft.com/previous-versions/bb417343(v=msdn.10)
package cab
