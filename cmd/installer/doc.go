// Command installer registers and removes an agent the way BK-CI's batch installation calls it (protocol §5.6): flags and
// wiring over the verbs of devopsAgent.
package main
