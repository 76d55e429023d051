package powercut

import (
	"iter"
	"math/rand/v2"
)

// fates are the things that can become of what a file holds that was not forced: from all of it to nothing.
var fates = [...]func([]byte) []byte{
	func(data []byte) []byte { return data },
	func(data []byte) []byte { return data[:len(data)/2] },
	func(data []byte) []byte { return make([]byte, len(data)) },
	func([]byte) []byte { return nil },
}

// lost is what becomes of another change that does not survive; 0 is that it does.
const lost = 1

// Pending is how many changes are not certain.
func (d *Disk) Pending() int { return len(d.pending) }

// Cuts yields the disks that a machine may find when it has power again: all, if the changes that are not certain can
// be combined in no more than limit ways, else a random sample of that size, the same for the same seed, that begins
// with the disk on which everything survived and the one on which nothing did. The disks have power, and nothing on
// them is uncertain.
func (d *Disk) Cuts(limit int, seed uint64) iter.Seq[*Disk] {
	return func(yield func(*Disk) bool) {
		if states := d.combinations(limit); states <= limit {
			for number := range states {
				rest := number
				fate, allowed := d.choose(func(n int) int {
					digit := rest % n
					rest /= n
					return digit
				})
				if allowed && !yield(d.found(fate)) {
					return
				}
			}
			return
		}
		random := rand.New(rand.NewPCG(seed, uint64(len(d.pending))))
		for i := range limit {
			pick := random.IntN
			switch i {
			case 0:
				pick = func(int) int { return 0 }
			case 1:
				pick = func(n int) int { return n - 1 }
			}
			fate, _ := d.choose(pick)
			if !yield(d.found(fate)) {
				return
			}
		}
	}
}

// combinations counts the ways to choose, also those that the rules forbid; it stops beyond limit.
func (d *Disk) combinations(limit int) int {
	total := 1
	d.choose(func(n int) int {
		if total <= limit {
			total *= n
		}
		return 0
	})
	return total
}

// choose lets pick, which returns a number below its argument, decide what becomes of each change: for content, an
// index of fates, else 0 or lost. A change whose condition is lost is lost as well; allowed is false if pick wanted
// it otherwise.
func (d *Disk) choose(pick func(n int) int) (fate []int, allowed bool) {
	fate, allowed = make([]int, len(d.pending)), true
	survive := len(d.pending) // in order, so many changes other than of content do
	if d.Ordered {
		for _, c := range d.pending {
			if c.data != nil {
				survive--
			}
		}
		survive -= pick(survive + 1)
	}
	for i, c := range d.pending {
		switch {
		case c.data != nil:
			fate[i] = pick(len(fates))
		case d.Ordered:
			if survive--; survive < 0 {
				fate[i] = lost
			}
		default:
			fate[i] = pick(2)
			for j, earlier := range d.pending[:i] {
				if fate[i] != lost && earlier.data == nil && fate[j] == lost && c.needs(earlier) {
					fate[i], allowed = lost, false
				}
			}
		}
	}
	return fate, allowed
}

// found is the disk on which the changes have met their fate.
func (d *Disk) found(fate []int) *Disk {
	im := d.durable.clone()
	for i, c := range d.pending {
		if c.data != nil {
			im[c.data.id].data = fates[fate[i]](c.data.data)
		} else if fate[i] != lost {
			c.apply(im)
		}
	}
	return &Disk{
		Ordered: d.Ordered, NoExchange: d.NoExchange, NoSymlink: d.NoSymlink,
		now: im, durable: im.clone(), left: -1, trashed: d.trashed,
	}
}
