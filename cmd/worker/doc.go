// Command worker is devopsWorker: it runs one build for an agent, with the command line of worker-agent.jar (protocol
// §3.6.4): flags and wiring.
package main
