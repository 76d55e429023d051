// Package worker: a native worker: the session of one build, its script steps, its log.
//
// It is started like worker-agent.jar (protocol §3.6.4) and says the same to the server (protocol Part 6): [Parse]
// reads the command line, [Worker.Run] takes the build from "started" to "end".
package worker
