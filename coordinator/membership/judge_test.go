package membership_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/demiurge-platform/demiurge/coordinator/membership"
	"github.com/demiurge-platform/demiurge/shared/gossip"
)

var base = time.Unix(1_000_000, 0)

func at(seconds float64) time.Time {
	return base.Add(time.Duration(seconds * float64(time.Second)))
}

func TestJudge(t *testing.T) {
	const alive, failed, left = gossip.StatusAlive, gossip.StatusFailed, gossip.StatusLeft
	type signals = membership.Signals
	// This coordinator leads since second 0; the moment of the judgement is second 100.
	for name, c := range map[string]struct {
		s    signals
		want membership.Status
		ask  bool
	}{
		"well": {signals{Gossip: alive, Open: true, Heard: at(99)}, membership.Alive, false},
		// The pool's suspicion, before it says failed, is not even seen here.
		"well, a while without a word":   {signals{Gossip: alive, Open: true, Heard: at(86)}, membership.Alive, false},
		"well, to be asked for once":     {signals{Gossip: alive, Open: true, Heard: at(85)}, membership.Alive, true},
		"well, asked just now":           {signals{Gossip: alive, Open: true, Heard: at(85), Asked: at(99)}, membership.Alive, false},
		"well, does not answer":          {signals{Gossip: alive, Open: true, Heard: at(80), Asked: at(96)}, membership.Suspect, false},
		"well, does not answer for long": {signals{Gossip: alive, Open: true, Heard: at(70), Asked: at(86)}, membership.Lost, false},
		"well, silent and never asked":   {signals{Gossip: alive, Open: true, Heard: at(10)}, membership.Suspect, true},
		"no gossip, stream open":         {signals{Open: true, Heard: at(99)}, membership.Alive, false},
		"no gossip, stream closed now":   {signals{Heard: at(99)}, membership.Alive, false},
		"no gossip, stream closed a bit": {signals{Heard: at(96)}, membership.Suspect, false},
		"no gossip, stream closed long":  {signals{Heard: at(70)}, membership.Lost, false},
		"stream died now, gossip lives":  {signals{Gossip: alive, Heard: at(98)}, membership.Alive, false},
		"stream died, gossip lives":      {signals{Gossip: alive, Heard: at(97)}, membership.Suspect, false},
		"stream died long, gossip lives": {signals{Gossip: alive, Heard: at(71)}, membership.Suspect, false},
		"stream died ages, gossip lives": {signals{Gossip: alive, Heard: at(70)}, membership.Lost, false},
		"gossip dead, stream open, to be asked": {
			signals{Gossip: failed, GossipSince: at(99.9), Open: true, Heard: at(99)}, membership.Suspect, true,
		},
		"gossip dead, asked just now": {
			signals{Gossip: failed, GossipSince: at(99), Open: true, Heard: at(98), Asked: at(99.6)}, membership.Suspect, false,
		},
		"gossip dead, asked, no answer": {
			signals{Gossip: failed, GossipSince: at(99), Open: true, Heard: at(98), Asked: at(99.5)}, membership.Lost, false,
		},
		"gossip dead, asked, answered": {
			signals{Gossip: failed, GossipSince: at(99), Open: true, Heard: at(99.8), Asked: at(99.5), Answered: at(99.5)}, membership.Alive, false,
		},
		"gossip dead for long, the answer is old, ask again": {
			signals{Gossip: failed, GossipSince: at(10), Open: true, Heard: at(97), Asked: at(96.9), Answered: at(96.9)}, membership.Alive, true,
		},
		"gossip dead for long, has answered, and misses one question": {
			signals{Gossip: failed, GossipSince: at(10), Open: true, Heard: at(96), Asked: at(99), Answered: at(95.9)}, membership.Alive, false,
		},
		"gossip dead for long, has answered, and is silent": {
			signals{Gossip: failed, GossipSince: at(10), Open: true, Heard: at(80), Asked: at(83), Answered: at(79)}, membership.Suspect, false,
		},
		"gossip dead for long, has answered, and is silent for long": {
			signals{Gossip: failed, GossipSince: at(10), Open: true, Heard: at(70), Asked: at(73), Answered: at(69)}, membership.Lost, false,
		},
		"gossip dead for long, has answered, stream died now": {
			signals{Gossip: failed, GossipSince: at(10), Heard: at(98), Asked: at(96), Answered: at(96)}, membership.Alive, false,
		},
		"gossip dead again after an answer": {
			signals{Gossip: failed, GossipSince: at(99), Open: true, Heard: at(98), Asked: at(95), Answered: at(95)}, membership.Suspect, true,
		},
		"a question of an earlier failure proves nothing": {
			signals{Gossip: failed, GossipSince: at(99), Open: true, Heard: at(20), Asked: at(30)}, membership.Suspect, true,
		},
		"both dead": {signals{Gossip: failed, GossipSince: at(99), Heard: at(99.5)}, membership.Lost, false},
		"gossip dead, stream closed right now": {
			signals{Gossip: failed, GossipSince: at(99), Heard: at(99.6)}, membership.Suspect, false,
		},
		"left":                   {signals{Gossip: left, GossipSince: at(99), Heard: at(98.5)}, membership.Left, false},
		"left, never heard here": {signals{Gossip: left, GossipSince: at(99), LeadsSince: at(90)}, membership.Left, false},
		"left for long":          {signals{Gossip: left, GossipSince: at(60), Heard: at(60)}, membership.Lost, false},
		"agent stopped, its host goes on": {
			signals{Gossip: failed, GossipSince: at(95), Heard: at(94), Ended: true}, membership.Suspect, false,
		},
		"agent stopped for long": {
			signals{Gossip: failed, GossipSince: at(70), Heard: at(70), Ended: true}, membership.Lost, false,
		},
		"left, stream open":           {signals{Gossip: left, GossipSince: at(99), Open: true, Heard: at(99)}, membership.Suspect, true},
		"left, asked":                 {signals{Gossip: left, GossipSince: at(99), Open: true, Heard: at(99), Asked: at(99.1)}, membership.Suspect, false},
		"left, and answers":           {signals{Gossip: left, GossipSince: at(90), Open: true, Heard: at(99), Asked: at(90.1), Answered: at(90.1)}, membership.Alive, false},
		"left, heard afterwards":      {signals{Gossip: left, GossipSince: at(99), Heard: at(99.5)}, membership.Alive, false},
		"left, heard a while after":   {signals{Gossip: left, GossipSince: at(94), Heard: at(95)}, membership.Suspect, false},
		"switched off, word by word":  {signals{Gossip: alive, Heard: at(99.5), Farewell: true}, membership.Lost, false},
		"switched off, stream open":   {signals{Gossip: left, GossipSince: at(99.6), Open: true, Heard: at(99.5), Farewell: true}, membership.Lost, false},
		"said good-bye to the former": {signals{Gossip: left, GossipSince: at(98), Heard: at(98), LeadsSince: at(99), Farewell: true}, membership.Left, false},

		// Another one has taken the host's name in the pool.
		"a stranger is alive, stream open": {
			signals{Gossip: alive, GossipSince: at(10), Stranger: true, Open: true, Heard: at(99)}, membership.Alive, false,
		},
		"a stranger is alive, to be asked": {
			signals{Gossip: alive, GossipSince: at(10), Stranger: true, Open: true, Heard: at(97)}, membership.Alive, true,
		},
		"a stranger hides a death": {
			signals{Gossip: alive, GossipSince: at(10), Stranger: true, Open: true, Heard: at(70), Asked: at(73)}, membership.Lost, false,
		},
		"a stranger failed, stream open": {
			signals{Gossip: failed, GossipSince: at(98), Stranger: true, Open: true, Heard: at(99), Asked: at(97)}, membership.Alive, false,
		},
		"a stranger failed, stream died now": {
			signals{Gossip: failed, GossipSince: at(95), Stranger: true, Heard: at(98)}, membership.Alive, false,
		},
		"a stranger left, stream died now": {
			signals{Gossip: left, GossipSince: at(95), Stranger: true, Heard: at(98)}, membership.Alive, false,
		},
		"returned to the pool, no stream yet": {
			signals{Gossip: alive, GossipSince: at(99), Flaps: 1, Heard: at(50)}, membership.Lost, false,
		},
		"returned with its stream": {
			signals{Gossip: alive, GossipSince: at(99), Flaps: 1, Open: true, Heard: at(99.5)}, membership.Alive, false,
		},
		"flapping, stream open": {signals{Gossip: alive, Flaps: 3, Open: true, Heard: at(99)}, membership.Suspect, false},
		"flapping, away for now, stream open": {
			signals{Gossip: failed, GossipSince: at(99.9), Flaps: 3, Open: true, Heard: at(99)}, membership.Suspect, true,
		},
		"flapping, no stream":          {signals{Gossip: alive, Flaps: 3, Heard: at(99)}, membership.Suspect, false},
		"flapping, no stream for long": {signals{Gossip: alive, Flaps: 3, Heard: at(60)}, membership.Lost, false},
		"this coordinator is cut off": {
			signals{Gossip: failed, GossipSince: at(90), Heard: at(90), Isolated: true}, membership.Suspect, false,
		},
		"cut off for long": {
			signals{Gossip: failed, GossipSince: at(60), Heard: at(60), Isolated: true}, membership.Lost, false,
		},
		"cut off, but for a stream": {
			signals{Gossip: failed, GossipSince: at(60), Heard: at(99.9), Open: true, Isolated: true}, membership.Suspect, true,
		},

		// A new leader, that has heard of nobody.
		"new leader, pool says alive":      {signals{Gossip: alive, LeadsSince: at(99)}, membership.Alive, false},
		"new leader, no stream for a bit":  {signals{Gossip: alive, LeadsSince: at(96)}, membership.Suspect, false},
		"new leader, no stream for long":   {signals{Gossip: alive, LeadsSince: at(70)}, membership.Lost, false},
		"new leader, pool says failed":     {signals{Gossip: failed, GossipSince: at(90), LeadsSince: at(99)}, membership.Suspect, false},
		"new leader is not blind":          {signals{Gossip: failed, GossipSince: at(90), LeadsSince: at(97)}, membership.Lost, false},
		"new leader, heard in an old term": {signals{Gossip: failed, GossipSince: at(90), Heard: at(50), LeadsSince: at(98)}, membership.Suspect, false},
		"new leader, heard, then both dead": {
			signals{Gossip: failed, GossipSince: at(99.2), Heard: at(98.5), LeadsSince: at(98)}, membership.Lost, false,
		},
		"new leader, stream open, pool says failed": {
			signals{Gossip: failed, GossipSince: at(90), Open: true, Heard: at(98.5), LeadsSince: at(98)}, membership.Suspect, true,
		},
	} {
		if c.s.LeadsSince.IsZero() {
			c.s.LeadsSince = at(0)
		}
		got := membership.Judge(c.s, at(100), membership.DefaultThresholds())
		if got.Status != c.want || got.Ask != c.ask {
			t.Errorf("%s: %+v, want %s (ask: %t)", name, got, c.want, c.ask)
		}
		if (got.Reason == "") != (got.Status == membership.Alive) {
			t.Errorf("%s: reason %q", name, got.Reason)
		}
	}
}

// Whatever else holds: one signal that lives keeps a host from being lost, and a moment is not enough.
func TestOneLivingSignalIsEnough(t *testing.T) {
	th := membership.DefaultThresholds()
	rapid.Check(t, func(t *rapid.T) {
		second := func(name string) time.Time { return at(float64(rapid.IntRange(0, 1000).Draw(t, name)) / 10) }
		s := membership.Signals{
			Gossip:      rapid.SampledFrom([]gossip.Status{"", gossip.StatusAlive, gossip.StatusFailed, gossip.StatusLeft}).Draw(t, "gossip"),
			GossipSince: second("gossip since"), Flaps: rapid.IntRange(0, 5).Draw(t, "flaps"), Heard: second("heard"),
			Open: rapid.Bool().Draw(t, "open"), Ended: rapid.Bool().Draw(t, "ended"), Asked: second("asked"), Answered: second("answered"),
			Farewell: rapid.Bool().Draw(t, "farewell"), Stranger: rapid.Bool().Draw(t, "stranger"), LeadsSince: second("leads"), Isolated: rapid.Bool().Draw(t, "isolated"),
		}
		now := at(100)
		v := membership.Judge(s, now, th)
		met := !s.Heard.Before(s.LeadsSince)
		silence := now.Sub(s.LeadsSince)
		if met {
			silence = now.Sub(s.Heard)
		}
		answered := !s.Answered.Before(s.GossipSince) && !s.Answered.Before(s.LeadsSince)
		if v.Status == membership.Lost {
			if s.Farewell && met {
				return // its own word, over its own connection
			}
			switch {
			case s.Gossip != gossip.StatusFailed && silence < th.LostAfter:
				t.Fatalf("lost, though the pool does not say failed: %+v", s)
			case s.Stranger && silence < th.LostAfter:
				t.Fatalf("lost, because of another one: %+v", s)
			case answered && silence < th.LostAfter:
				t.Fatalf("lost for one missed question, though the gossip does not reach it: %+v", s)
			case s.Ended && met && !s.Open && silence < th.LostAfter:
				t.Fatalf("lost, though its own end closed the stream: %+v", s)
			case s.Open && (s.Asked.Before(s.LeadsSince) || s.Heard.After(s.Asked) || now.Sub(s.Asked) < th.Answer):
				t.Fatalf("lost, though no question is unanswered: %+v", s)
			case met && silence < th.Answer && silence < th.Confirm:
				t.Fatalf("lost, though it was heard of just now: %+v", s)
			case now.Sub(s.LeadsSince) < th.Answer:
				t.Fatalf("lost, by a leader of a moment: %+v", s)
			case !met && silence < th.Grace && !s.Open:
				t.Fatalf("lost, though this leader has heard of nobody yet: %+v", s)
			}
		}
		if v.Ask && (!s.Open || v.Status == membership.Lost || v.Status == membership.Left || s.Heard.Before(s.Asked) && !s.Asked.Before(s.GossipSince) && !s.Asked.Before(s.LeadsSince)) {
			t.Fatalf("asked in vain: %+v", s)
		}
		if v.Status == membership.Left && s.Gossip != gossip.StatusLeft {
			t.Fatalf("left without a word: %+v", s)
		}
	})
}
