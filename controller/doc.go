// Package controller: BK-CI for one machine: the other end of the wire on SQLite, with a web page; in memory for tests.
package controller
