// Package bom: A bill of materials of macOS ("BOMStore"): paths with modes, owners, sizes and checksums, as receipts keep them.
//
// The form is not documented by Apple. It is a store of numbered blocks with an index at its end; five named variables lead
// to B-trees of paths. Numbers are big-endian.
package bom
