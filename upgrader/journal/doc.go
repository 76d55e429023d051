// Package journal: the open upgrade of an installation: what is about to be replaced, is on trial, or was taken back.
package journal
