// Package rpm: the head of an .rpm: lead, signature header and header, read.
package rpm
