package wire

import (
	"fmt"
	"io"
	"log/slog"
)

// Secret is a text that cannot print itself: every fmt verb and slog show "(secret)".
// string(s) is the deliberate way out; encoding/json writes the real value, because the wire needs it.
type Secret string

// Format hides the secret from every verb of package fmt, %#v and %x included.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(secret)") }

// String hides the secret.
func (Secret) String() string { return "(secret)" }

// LogValue hides the secret from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }

// Identity says who we are on the wire: three values that the server made (protocol §5.1).
type Identity struct {
	Project string // devops.project.id
	Agent   string // devops.agent.id, a hash id
	Secret  Secret // devops.agent.secret.key
}

// LogValue leaves the secret out: slog's JSON handler would write it, as encoding/json does.
func (id Identity) LogValue() slog.Value {
	return slog.GroupValue(slog.String("project", id.Project), slog.String("agent", id.Agent))
}

// LogValue is the ids of a build: the rest may hold secrets.
func (b Build) LogValue() slog.Value {
	return slog.GroupValue(slog.String("project", b.Project), slog.String("build", b.ID), slog.String("vm_seq", b.VMSeq))
}

// LogValue is the ids of a session: the rest may hold secrets.
func (d Debug) LogValue() slog.Value {
	return slog.GroupValue(slog.String("project", d.Project), slog.String("build", d.Build), slog.Int64("debug", d.DebugID))
}

// Format prints the ids. Without it a verb that fits no struct, %s behind a pointer for one, would print the bare
// members: package fmt then asks no method of theirs.
func (id Identity) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "agent %s of project %s", id.Agent, id.Project)
}

// Format prints the image, for the reason given at Identity.
func (d DockerBuild) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "image "+d.Image) }

// Format prints the user, for the reason given at Identity.
func (c Credential) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "login of "+c.User) }
