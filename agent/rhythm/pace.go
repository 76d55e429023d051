package rhythm

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// The cadences of the design note and of protocol §1.6, §1.7.1. Sleep is always after the work.
const (
	AskEvery     = 5 * time.Second  // the one call of the ask generation
	BuildEvery   = 5 * time.Second  // status and claim
	BeatEvery    = 10 * time.Second // heartbeat
	UpgradeEvery = 20 * time.Second // upgrade check
)

// Where the loops of separate endpoints begin, from the first heartbeat on. No two of them speak in the same moment: what a
// heartbeat brought is in force when the next build starts (statements 22, 26), and one connection does for all.
const (
	apart       = 300 * time.Millisecond
	FirstClaim  = BuildEvery + apart
	FirstScript = 10*time.Second + 2*apart // 10 s: protocol §1.6.9
	FirstCheck  = UpgradeEvery + 3*apart
)

// longAway bounds a pause once a server has been away for so long that this agent is offline there anyway. A whole fleet
// that comes back makes several calls each in its first seconds: spread over a minute, no second sees a tenth of it.
const longAway = time.Minute

// Ask is the pace of the one call of the ask generation.
func Ask() Pace { return Pace{Every: AskEvery, Most: 3 * AskEvery, Long: longAway} }

// Build is the pace of claims on an endpoint of their own.
func Build() Pace { return Pace{Every: BuildEvery, Most: 3 * BuildEvery, Long: longAway} }

// Beat is the pace of heartbeats on an endpoint of their own: 50 s of silence count as offline.
func Beat() Pace { return Pace{Every: BeatEvery, Most: BeatEvery + 3*time.Second, Long: longAway} }

// Upgrade is the pace of upgrade checks on an endpoint of their own.
func Upgrade() Pace { return Pace{Every: UpgradeEvery, Most: 3 * UpgradeEvery} }

// manyErrors in a row are a server that is away, and not one that restarts.
const manyErrors = 6

// Pace is the rhythm of one loop: a fixed interval while all is well, and longer, jittered pauses while it is not,
// so that a fleet does not come back in step (weakness W-27). Never shorter than the interval, or what the server
// asked for in Retry-After.
type Pace struct {
	Every  time.Duration
	Most   time.Duration // of a pause after errors
	Long   time.Duration // of a pause after many errors, a minute or more of them; 0 is Most
	errors int           // in a row
}

// After is the pause after a round that ended with err.
func (p *Pace) After(err error) time.Duration {
	if err == nil {
		p.errors = 0
		return p.Every
	}
	p.errors++
	limit := max(p.Most, p.Long)
	if p.errors < manyErrors {
		limit = min(p.Most, p.Every*time.Duration(1+p.errors))
	}
	pause := p.Every
	if limit > p.Every {
		pause += rand.N(limit - p.Every)
	}
	var refused *wire.StatusError
	if errors.As(err, &refused) && refused.RetryAfter > pause {
		pause = refused.RetryAfter
	}
	return pause
}
