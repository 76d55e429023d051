// Package unpack: archives of foreign origin (zip, tar.gz), unpacked into one directory and nowhere else.
//
// An archive is checked the same on every system, whatever its own file system would bear: names that Windows takes
// for devices or streams, and names that only differ in case, are refused on Linux as well. An archive is unpacked
// whole, or refused whole, with an [EntryError] that says which entry and why.
//
// Nothing is forced to the disk here: who wants the directory to survive a power cut does that before it is used.
//
// The original joins names without a check, keeps links as plain files and knows no bounds (protocol §4.5, W-14).
package unpack
