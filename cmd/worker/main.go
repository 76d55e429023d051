package main

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"github.com/devops-agent/devops-agent/cmd/internal/cli"
	"github.com/devops-agent/devops-agent/worker"
)

func main() { os.Exit(cli.Main("devopsWorker", run)) }

func run(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == "version" {
		fmt.Println(cli.Version())
		return nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	host := worker.Host{Dir: dir, GOOS: runtime.GOOS, Version: cli.Version(), Env: os.Environ(), Stderr: os.Stderr}
	if code, err := worker.Run(ctx, host, args); code != 0 {
		return &cli.Exit{Code: code, Err: err}
	}
	return nil
}
