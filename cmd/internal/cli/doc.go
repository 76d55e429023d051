// Package cli: how a program starts, prints its error and picks its exit code.
package cli
