//go:build !windows

package agent

// onlyCreator concerns Windows alone (protocol §1.7.3, step 6).
func onlyCreator() error { return nil }
