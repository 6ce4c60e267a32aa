package membership

import (
	"fmt"
	"time"

	"github.com/demiurge-platform/demiurge/shared/gossip"
)

// Status is what a coordinator holds of a host, from both signals.
type Status string

// The statuses.
const (
	Alive   Status = "alive"
	Suspect Status = "suspect" // nothing new is placed there; what it has stays
	Lost    Status = "lost"    // both signals are gone: its organizations are served elsewhere
	Left    Status = "left"    // it said that it goes
)

// Signals is what this coordinator knows of one host at one moment. Times are of this process's own clock.
type Signals struct {
	// Gossip is the pool's word on the host's agent; empty: the pool has not heard of it (yet).
	Gossip gossip.Status
	// GossipSince is when this coordinator saw the agent take that status.
	GossipSince time.Time
	// Flaps is how often the agent failed and came back within gossip.FlapWindow.
	Flaps int

	// Heard is when this coordinator last had anything from the agent over mutual TLS: a report, the
	// opening of its stream, the answer to a question. Zero: never.
	Heard time.Time
	// Open: the agent's stream is open as far as this end knows. A host without power leaves one too.
	Open bool
	// Ended: the agent's end closed the stream. A machine that is gone closes nothing, so this one lives, and
	// its nginx and gateways serve without the agent, which is being restarted or upgraded.
	Ended bool
	// Asked is when the latest question was sent down the stream. Zero: never. One that was answered is
	// followed by a later Heard.
	Asked time.Time

	// LeadsSince is when this coordinator began to lead and to hold streams.
	LeadsSince time.Time
	// Isolated: of all members of the pool, this coordinator sees nobody else alive. Then it is more likely
	// cut off itself than all others lost.
	Isolated bool
}

// Thresholds are Judge's measures. All are needed.
type Thresholds struct {
	SilentAfter time.Duration // without stream, gossip well: nothing new is placed there
	LostAfter   time.Duration // without stream, gossip well or unknown: lost
	Confirm     time.Duration // stream broken, gossip failed: lost. One that the agent's end closed: LostAfter
	Answer      time.Duration // stream open, gossip failed: how long a question may stay unanswered
	Grace       time.Duration // of a new leader: how long the agents may take to find it, gossip failed
}

// DefaultThresholds find a dead host within half a second of the gossip's word, and bear a dead signal as
// long as the other one lives.
func DefaultThresholds() Thresholds {
	return Thresholds{
		SilentAfter: 3 * time.Second, LostAfter: 30 * time.Second,
		Confirm: 500 * time.Millisecond, Answer: 500 * time.Millisecond, Grace: 3 * time.Second,
	}
}

// Verdict is what Judge found, and why.
type Verdict struct {
	Status Status
	Reason string // empty when alive
	// Ask: a question has to go down the stream now, to which any agent that lives answers at once. Its
	// moment is the next Signals.Asked.
	Ask bool
}

// Judge is the rule by which hosts are found to be lost. Either signal alone makes a host suspect at most
// for a while; both make it lost. It only judges: a host that was lost comes back by reporting, because what
// it reports has to be looked at first.
func Judge(s Signals, now time.Time, t Thresholds) Verdict {
	met := !s.Heard.IsZero() && !s.Heard.Before(s.LeadsSince) // this leader has heard of the agent
	since := s.LeadsSince
	if met {
		since = s.Heard
	}
	silence := now.Sub(since)
	switch s.Gossip {
	case gossip.StatusFailed:
		return confirm(s, now, silence, met, t)
	case gossip.StatusLeft:
		if s.Open || met && s.Heard.After(s.GossipSince) {
			return Verdict{Status: Suspect, Reason: "it left the pool, and still reports"}
		}
		if silence >= t.LostAfter {
			return Verdict{Status: Lost, Reason: "it left the pool"}
		}
		return Verdict{Status: Left, Reason: "it left the pool"}
	}
	switch {
	case s.Open && s.Flaps >= gossip.FlapLimit, !s.Open && s.Flaps >= gossip.FlapLimit && silence < t.LostAfter:
		return Verdict{Status: Suspect, Reason: fmt.Sprintf("it failed and came back %d times within %v", s.Flaps, gossip.FlapWindow)}
	case s.Open:
		return Verdict{Status: Alive}
	case silence >= t.LostAfter:
		return Verdict{Status: Lost, Reason: fmt.Sprintf("its agent has not been heard of for %v", t.LostAfter)}
	case silence >= t.SilentAfter:
		return Verdict{Status: Suspect, Reason: fmt.Sprintf("its agent has not been heard of for %v", t.SilentAfter)}
	}
	return Verdict{Status: Alive}
}

// confirm looks for the second signal of a host that the pool holds for failed.
func confirm(s Signals, now time.Time, silence time.Duration, met bool, t Thresholds) Verdict {
	if s.Isolated {
		if !s.Open && silence >= t.LostAfter {
			return Verdict{Status: Lost, Reason: fmt.Sprintf("its agent has not been heard of for %v", t.LostAfter)}
		}
		return Verdict{Status: Suspect, Reason: "no other member of the pool is seen from here", Ask: s.Open && due(s, now, t)}
	}
	if s.Open {
		if unanswered(s) && now.Sub(s.Asked) >= t.Answer {
			return Verdict{Status: Lost, Reason: fmt.Sprintf("the pool holds it for failed, and it did not answer within %v", t.Answer)}
		}
		return Verdict{Status: Suspect, Reason: "the pool holds it for failed; its stream is open", Ask: due(s, now, t)}
	}
	patience := t.Confirm
	switch {
	case !met:
		patience = t.Grace
	case s.Ended:
		patience = t.LostAfter
	}
	if silence >= patience {
		return Verdict{Status: Lost, Reason: fmt.Sprintf("the pool holds it for failed, and its agent has not been heard of for %v", patience)}
	}
	return Verdict{Status: Suspect, Reason: "the pool holds it for failed"}
}

// unanswered reports whether a question is out that belongs to this failure.
func unanswered(s Signals) bool {
	return !s.Asked.IsZero() && !s.Asked.Before(s.GossipSince) && !s.Asked.Before(s.LeadsSince) && s.Heard.Before(s.Asked)
}

// due reports whether a question has to be asked: none is out, and the last answer is getting old.
func due(s Signals, now time.Time, t Thresholds) bool {
	if unanswered(s) {
		return false
	}
	fresh := s.Heard.After(s.GossipSince) && !s.Heard.Before(s.LeadsSince)
	return !fresh || now.Sub(s.Heard) >= t.Answer
}
