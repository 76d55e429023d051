package main

import (
	"strings"
	"testing"

	"github.com/devops-agent/devops-agent/controller"
)

func TestRerun(t *testing.T) {
	d := newDesk(t)
	first, err := d.server.Submit("", controller.Spec{Name: "again", Steps: []controller.Step{{Script: "true"}}})
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(d.must("rerun", first.ID))
	b, err := d.server.FindBuild(id)
	if err != nil || b.Number != 2 || b.Name != "again" {
		t.Errorf("%+v %v", b, err)
	}
	if _, _, err := d.run(d.token, "rerun", "77"); err == nil {
		t.Error("a build that is not there was run again")
	}
}
