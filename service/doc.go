// Package service: the agent as installed on one machine: where its files are, which process holds which lock, who restarts it.
package service
