// Package windows: The agent as a Windows service: SCM registration and recovery.
//
// A [Service] is a value: what is to be registered. It renders itself as registry values, for packages and tests, on any
// system. [Manager] registers, starts and stops one on Windows. [Security] says who may write to a file.
package windows
