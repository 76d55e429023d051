// Command packager makes what is published: signatures today. It is a tool of those who build the agent and is not installed
// with it.
package main
