// Package control: the local conversation with a running agent or daemon: status, drain, reload, stop.
package control
