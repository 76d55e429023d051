package main

import "os"

// become runs another program, and ends as it does.
func become(path string, argv []string) error {
	child, err := os.StartProcess(path, argv, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return err
	}
	state, err := child.Wait()
	if err != nil {
		return err
	}
	os.Exit(state.ExitCode())
	return nil
}
