package journal

import "testing"

// rollback goes back to a version of the agent, "" for the one before, and returns what runs then.
func (m *machine) rollback(version string) int {
	m.t.Helper()
	plan, err := m.j.Previous(version)
	if err != nil {
		m.t.Fatal(err)
	}
	m.carryOut(*plan)
	return m.live()
}

// TestTheWayBackIsThatOfBefore: whoever goes back and to the newer version again can go back once more, also when that one ran here before
// others did.
func TestTheWayBackIsThatOfBefore(t *testing.T) {
	m := newMachine(t, 1)
	m.put(m.vendor, 1)
	m.start()
	for _, version := range []int{3, 5, 1} {
		if m.upgrade(FromFile, version) || m.live() != version {
			t.Fatalf("version %d runs", m.live())
		}
	}
	for _, step := range []struct {
		to   string
		want int
	}{{"", 5}, {"1", 1}, {"", 5}, {"", 3}} {
		if got := m.rollback(step.to); got != step.want {
			t.Fatalf("rollback %q: %d, want %d", step.to, got, step.want)
		}
	}
}
