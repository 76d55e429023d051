// Command fleetsim plays a fleet: thousands of simulated agents, with the agent's own client and its own pacing, against a controller
// that it starts. It is a tool of those who build the controller and is not installed with it.
package main
