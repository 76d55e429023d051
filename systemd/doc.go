// Package systemd: a unit file for the agent, and the conversation with systemctl.
package systemd
