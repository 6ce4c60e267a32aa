package membership

import "time"

// A host that is cut off goes on serving pools with isolation stop only for a lease, which it counts by its
// own clock from the moment at which it sent the last word that a leader acknowledged. A coordinator gives
// such an organization to another host only when that lease is over for certain: see LeaseEnd.
const (
	// DefaultLease outlasts a change of the leader with a hung disk (about 5 s), the agent's way to the next
	// one, and the second between two of its words, so that the end of a leader never stops a gateway.
	DefaultLease = 8 * time.Second
	// MinLease is the least that bears an ordinary change of the leader.
	MinLease = 3 * time.Second
	// clockDrift is how much slower the clock of a host may be: one part in so many. Crystals are better
	// than one in a thousand.
	clockDrift = 100
	// fenceTime is how long a host may take from the end of its lease to the closing of its routes.
	fenceTime = time.Second
)

// LeaseEnd is when the lease of a host that is not heard of any more has ended for certain, by a clock that may be slower
// than this one, and its routes are closed. The word that it counts from was sent before it was heard here; what an earlier
// leader acknowledged was sent before this one began to lead.
func LeaseEnd(s Signals, lease time.Duration) time.Time {
	last := s.LeadsSince
	if s.Heard.After(last) {
		last = s.Heard
	}
	return last.Add(LeaseSpan(lease))
}

// LeaseSpan is how long a lease may last by this clock, from the word that it counts from to the last closed route.
func LeaseSpan(lease time.Duration) time.Duration { return lease + lease/clockDrift + fenceTime }
