// Package version: versions of programs, and which of two is newer.
package version
