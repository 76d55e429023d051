// Package packaging: One manifest, four packages: .deb .rpm (nfpm), .pkg .msi (our writers).
//
// [Contents] says what a package puts on a system, as data; [Write] makes the package of one [Format] from it. Both are
// functions of a [Release] alone: the same programs and the same commit give the same bytes, on any machine and at any time.
package packaging
