// Package agent: one running agent; it owns every loop.
//
// Which loops there are depends on the generation that the server speaks (protocol §1.6, §1.7): one call for
// everything (ask.go), or one endpoint per purpose (split.go). What a server sends never ends an agent; only its
// deletion does, after it was said several times.
package agent
