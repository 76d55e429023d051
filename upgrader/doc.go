// Package upgrader: replacing parts of an installation: take stock, fetch, verify, swap, settle.
//
// An [Order] says what is wanted, a [Source] has the files, a [Stage] is what of it was fetched, checked and tried without
// touching anything that is live. [Upgrader.Replace] puts parts into place that need no restart, [Upgrader.Begin] writes down
// those that do; package journal carries both out and takes them back.
package upgrader
