// Package trust: who may say what runs here: minisign signatures, keys, the oldest version accepted (floor).
//
// A signature lies beside its file as FILE.minisig, in the format of minisign, old (Ed) or hashed (ED). What the file is
// stands in the trusted comment, which is signed as well:
//
//	trusted comment: name=devopsAgent version=v1.2.3 os=linux arch=amd64 time=1718000000
//
// A [Policy] verifies that a file is what it was asked for as, a [Floor] that it is no older than what ran here, and
// [Sign] makes the signatures. Whoever verifies a file must use that very file afterwards: verify what lies in a directory
// that nobody else can write to.
package trust
