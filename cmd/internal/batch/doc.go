// What BK-CI's batch installation asks of an installer: another identity for a copy of an image, and the agent's verbs.
package batch
