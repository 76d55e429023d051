// Command daemon is devopsDaemon: it keeps the agent of its directory running where no service manager does.
package main
