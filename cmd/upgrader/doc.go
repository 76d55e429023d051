// Command upgrader replaces parts of an installation, removes it, and, as "upgrader start", is what keepers run in the agent's
// place: flags and wiring.
package main
