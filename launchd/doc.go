// Package launchd: a launchd job for the agent, and the conversation with launchctl.
//
// What a job is told is the value [Job], which any system can render and test; [Manager] talks to launchctl, and
// [CheckHome] knows the folders that macOS keeps from background programs.
package launchd
