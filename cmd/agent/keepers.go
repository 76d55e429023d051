package main

import "github.com/devops-agent/devops-agent/service"

// keeperOf is the keeper that an installation was registered with.
func keeperOf(*service.Installation) (service.Supervisor, error) { return nil, service.ErrNoKeeper }

// bestKeeper is the best one that this machine and account have.
func bestKeeper(*service.Installation) (service.Supervisor, error) { return nil, service.ErrNoKeeper }

// newKeeper is a certain one.
func newKeeper(inst *service.Installation, k service.Keeper) (service.Supervisor, error) {
	return nil, service.ErrNoKeeper
}
