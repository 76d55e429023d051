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
