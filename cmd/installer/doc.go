// Command installer is the name by which BK-CI's batch installation calls the agent of its home (protocol §5.6). All that it
// does is in devopsAgent; this program is small because it is installed twice.
package main
