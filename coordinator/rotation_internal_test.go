package coordinator

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/gossip"
)

// members is a leader that rotates and another member that follows the state, right after every step or late.
type members struct {
	t             *testing.T
	leader, other []gossip.Key // the one in use first
	state         []gossip.Key
	follows       func(step int) bool
	steps         int
	dropped       []gossip.Key
	failAt        int
}

// step ends a step: whoever follows takes what the state has, and all can talk.
func (m *members) step(what string) error {
	m.steps++
	if m.follows(m.steps) {
		taken := slices.Clone(m.state)
		if len(taken) == 2 && m.other[0] == taken[1] {
			taken[0], taken[1] = taken[1], taken[0]
		}
		m.other = taken
	}
	if !slices.Contains(m.other, m.leader[0]) || !slices.Contains(m.leader, m.other[0]) {
		m.t.Errorf("after %s one uses %v and has %v, the other %v and %v", what, m.leader[0], m.leader, m.other[0], m.other)
	}
	for _, k := range m.dropped {
		if slices.Contains(m.other, k) {
			m.t.Errorf("after %s the dropped %v is back", what, k)
		}
	}
	if m.steps == m.failAt {
		return fmt.Errorf("the leader dies after %s", what)
	}
	return nil
}

func (m *members) Keyring() []gossip.Key { return slices.Clone(m.leader) }

func (m *members) InstallKey(_ context.Context, key gossip.Key) (gossip.KeyReport, error) {
	if len(m.leader) == 2 {
		return gossip.KeyReport{}, fmt.Errorf("%v has no room for %v", m.leader, key)
	}
	m.leader = append(m.leader, key)
	if !slices.Contains(m.other, key) {
		m.other = append(m.other, key) // beside a third one that it follows the state out of
	}
	return gossip.KeyReport{}, m.step("the installation")
}

func (m *members) UseKey(_ context.Context, key gossip.Fingerprint, _ bool) (gossip.KeyReport, error) {
	for _, ring := range []*[]gossip.Key{&m.leader, &m.other} {
		at := slices.IndexFunc(*ring, func(k gossip.Key) bool { return k.Fingerprint() == key })
		if at < 0 {
			return gossip.KeyReport{}, fmt.Errorf("%v has no %s to use", *ring, key)
		}
		(*ring)[0], (*ring)[at] = (*ring)[at], (*ring)[0]
	}
	return gossip.KeyReport{}, m.step("the use")
}

func (m *members) RemoveKey(_ context.Context, key gossip.Fingerprint, _ bool) (gossip.KeyReport, error) {
	for _, ring := range []*[]gossip.Key{&m.leader, &m.other} {
		*ring = slices.DeleteFunc(*ring, func(k gossip.Key) bool {
			if k.Fingerprint() == key {
				m.dropped = append(m.dropped, k)
			}
			return k.Fingerprint() == key
		})
	}
	return gossip.KeyReport{}, m.step("the removal")
}

func (m *members) keep(keys ...gossip.Key) error {
	m.state = keys
	return m.step("the write into the state")
}

// Whenever a member follows the state, early or late, it can talk with all others, and takes no key again that was dropped.
// Where the leader dies after any step, the next rotation goes through.
func TestARotationForWhoFollowsTheState(t *testing.T) {
	const most = 8 // steps of one that begins anew
	for failAt := range most + 1 {
		for when := range 1 << most {
			one, left := gossip.NewKey(), gossip.NewKey()
			m := &members{
				t: t, leader: []gossip.Key{one}, other: []gossip.Key{one}, state: []gossip.Key{one}, failAt: failAt,
				follows: func(step int) bool { return when>>(step%most)&1 == 1 },
			}
			if when&1 == 1 { // one was interrupted before
				m.leader, m.other, m.state = []gossip.Key{one, left}, []gossip.Key{left, one}, []gossip.Key{one, left}
			}
			rotated, err := rotateGossip(t.Context(), m, m.keep)
			if err != nil && m.steps == failAt {
				m.dropped = nil
				rotated, err = rotateGossip(t.Context(), m, m.keep)
			}
			m.follows = func(int) bool { return true }
			if err := m.step("a while"); err != nil && failAt == 0 {
				t.Error(err)
			}
			if err != nil || len(m.leader) != 1 || string(m.leader[0].Fingerprint()) != rotated.Key || !slices.Equal(m.other, m.leader) || !slices.Equal(m.state, m.leader) {
				t.Errorf("died after step %d, followed at %b: %+v, %v", failAt, when, rotated, err)
			}
			if t.Failed() {
				return
			}
		}
	}
}
