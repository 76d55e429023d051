// Command controller is devopsController: BK-CI for one machine, and its operator's command line.
//
// With --json, every command writes JSON to standard output: an object, a list, or (run, logs) one object a line, with
// the members of controller.Build, controller.AgentInfo, controller.Script and controller.Line. They are stable: members
// are added, never renamed.
package main
