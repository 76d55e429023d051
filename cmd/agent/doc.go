// Command agent is devopsAgent: the agent itself and, with a verb, the operator's tool for it.
package main
