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
	// Answered is when the latest of the questions that were answered was sent. Zero: none was.
	Answered time.Time
	// Farewell: the agent's last word was that its machine is being switched off.
	Farewell bool
	// Stranger: the pool's member of the host's name is not the one that the agent says it is.
	Stranger bool

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
//
// Who has a key of the gossip can make any member look failed, left or alive. That costs the host at most a
// question, which the agent answers over its own authenticated connection.
func Judge(s Signals, now time.Time, t Thresholds) Verdict {
	met := !s.Heard.IsZero() && !s.Heard.Before(s.LeadsSince) // this leader has heard of the agent
	since := s.LeadsSince
	if met {
		since = s.Heard
	}
	silence := now.Sub(since)
	if s.Farewell && met {
		return Verdict{Status: Lost, Reason: "it said that it is being switched off"}
	}
	switch {
	case s.Stranger: // what the pool says is of another one: only the stream counts
		return connection(s, now, silence, t, s.Open && overdue(s, now, t.SilentAfter))
	case s.Gossip == gossip.StatusFailed && !answered(s):
		return confirm(s, now, silence, met, t)
	case s.Gossip == gossip.StatusLeft && s.Open && !answered(s):
		return Verdict{Status: Suspect, Reason: "it left the pool; its stream is open", Ask: !unanswered(s)}
	case s.Gossip == gossip.StatusLeft && !s.Open && (!met || !s.Heard.After(s.GossipSince)) && silence < t.LostAfter:
		return Verdict{Status: Left, Reason: "it left the pool"}
	case s.Gossip == gossip.StatusAlive || s.Gossip == "":
		return connection(s, now, silence, t, false)
	}
	// The pool holds it for failed or left, and it has answered since: the gossip does not reach it.
	return connection(s, now, silence, t, s.Open && overdue(s, now, t.SilentAfter))
}

// connection judges a host whose gossip is well or says nothing. Doubt has it asked as long as its stream is
// open.
func connection(s Signals, now time.Time, silence time.Duration, t Thresholds, doubt bool) Verdict {
	// Nearly all hosts are well, and all are judged many times a second: reasons are worded when there is one.
	verdict := func(status Status, unheard time.Duration) Verdict {
		return Verdict{Status: status, Reason: fmt.Sprintf("its agent has not been heard of for %v", unheard)}
	}
	switch {
	case s.Open && silence >= t.LostAfter:
		if unanswered(s) && now.Sub(s.Asked) >= t.Answer {
			return verdict(Lost, t.LostAfter)
		}
		silent := verdict(Suspect, t.SilentAfter)
		silent.Ask = !unanswered(s)
		return silent
	case !s.Open && silence >= t.LostAfter:
		return verdict(Lost, t.LostAfter)
	case s.Flaps >= gossip.FlapLimit:
		return Verdict{Status: Suspect, Reason: fmt.Sprintf("it failed and came back %d times within %v", s.Flaps, gossip.FlapWindow), Ask: doubt}
	case s.Open && unanswered(s) && now.Sub(s.Asked) >= t.SilentAfter:
		return verdict(Suspect, t.SilentAfter)
	case s.Open:
		// An agent says something every few seconds. One that has not for so long is asked.
		return Verdict{Status: Alive, Ask: doubt || overdue(s, now, t.LostAfter/2)}
	case silence >= t.SilentAfter:
		return verdict(Suspect, t.SilentAfter)
	}
	return Verdict{Status: Alive}
}

// confirm looks for the second signal of a host that the pool holds for failed.
func confirm(s Signals, now time.Time, silence time.Duration, met bool, t Thresholds) Verdict {
	if s.Isolated {
		if !s.Open && silence >= t.LostAfter {
			return Verdict{Status: Lost, Reason: fmt.Sprintf("its agent has not been heard of for %v", t.LostAfter)}
		}
		return Verdict{Status: Suspect, Reason: "no other member of the pool is seen from here", Ask: s.Open && !unanswered(s)}
	}
	if s.Open {
		if unanswered(s) && now.Sub(s.Asked) >= t.Answer {
			return Verdict{Status: Lost, Reason: fmt.Sprintf("the pool holds it for failed, and it did not answer within %v", t.Answer)}
		}
		return Verdict{Status: Suspect, Reason: "the pool holds it for failed; its stream is open", Ask: !unanswered(s)}
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

// unanswered reports whether a question is out that belongs to what the gossip says now, by this leader.
func unanswered(s Signals) bool {
	return !s.Asked.IsZero() && !s.Asked.Before(s.GossipSince) && !s.Asked.Before(s.LeadsSince) && s.Heard.Before(s.Asked)
}

// answered reports whether such a question was answered, if not the latest one: from then on the gossip is
// no signal, and the connection alone decides, with its own patience.
func answered(s Signals) bool {
	return !s.Answered.IsZero() && !s.Answered.Before(s.GossipSince) && !s.Answered.Before(s.LeadsSince)
}

// overdue reports whether a question has to be asked because nothing was heard for so long.
func overdue(s Signals, now time.Time, after time.Duration) bool {
	last := s.Heard
	if s.LeadsSince.After(last) {
		last = s.LeadsSince
	}
	return !unanswered(s) && now.Sub(last) >= after
}
