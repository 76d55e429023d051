package upgrader

// giveAway does nothing: what is made in a directory inherits its access list.
func (u *Upgrader) giveAway(string) error { return nil }
