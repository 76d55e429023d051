// Command packager makes what is published: packages, keys, signatures. It is a tool of those who build the agent and is not installed
// with it.
package main
