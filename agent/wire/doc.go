// Package wire: what is said to BK-CI: messages, envelope, headers, [Client].
//
// The messages are those of both protocol generations (protocol §1.6, §1.7) and of the worker session
// (protocol Part 6). Nothing here decides anything: a loop of package agent asks, a message comes back.
package wire
