package gossip

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/serf/serf"
)

// MemberKeys is what keys one member has on its disk.
type MemberKeys struct {
	Member string // role.name
	Status Status
	Keys   []Fingerprint // the one in use first; of a failed member: when it was last heard
}

// KeyReport tells who has which key. Members that left are not in it.
type KeyReport struct{ Members []MemberKeys }

// Without lists the members that do not have a key: the live ones and the failed ones.
func (r KeyReport) Without(key Fingerprint) (alive, failed []string) {
	return r.list(func(m MemberKeys) bool { return !slices.Contains(m.Keys, key) })
}

// NotUsing lists the members that encrypt with another key: the live ones and the failed ones.
func (r KeyReport) NotUsing(key Fingerprint) (alive, failed []string) {
	return r.list(func(m MemberKeys) bool { return len(m.Keys) == 0 || m.Keys[0] != key })
}

// With lists the members that have a key.
func (r KeyReport) With(key Fingerprint) (alive, failed []string) {
	return r.list(func(m MemberKeys) bool { return slices.Contains(m.Keys, key) })
}

func (r KeyReport) list(wanted func(MemberKeys) bool) (alive, failed []string) {
	for _, m := range r.Members {
		if wanted(m) {
			if m.Status == StatusAlive {
				alive = append(alive, m.Member)
			} else {
				failed = append(failed, m.Member)
			}
		}
	}
	return alive, failed
}

// Keys reports who has which key, from what each member published after its keys were safe on its disk.
func (n *Node) Keys() KeyReport {
	var r KeyReport
	for _, m := range n.Members() {
		if m.Status != StatusLeft {
			r.Members = append(r.Members, MemberKeys{m.id(), m.Status, m.Keys})
		}
	}
	return r
}

// Keyring gives this node's keys, the one in use first: what a host gets when it joins.
func (n *Node) Keyring() []Key {
	if n.ring == nil {
		return nil
	}
	var out []Key
	for _, k := range n.ring.live.GetKeys() {
		out = append(out, Key{string(k)})
	}
	return out
}

var errNoKeys = errors.New("the pool is not encrypted, it runs for development")

// InstallKey gives a new key to the whole pool, beside the one in use, and returns when every live member has
// it on its disk, those that join meanwhile too. Members that are away are in the report: they need the new
// key before RemoveKey of the old one.
func (n *Node) InstallKey(ctx context.Context, key Key) (KeyReport, error) {
	if n.ring == nil {
		return KeyReport{}, fmt.Errorf("cannot install %s: %w", key, errNoKeys)
	}
	if key.IsZero() {
		return KeyReport{}, errors.New("cannot install an empty gossip key")
	}
	if _, here := n.ring.find(key.Fingerprint()); !here && len(n.Keyring()) >= maxKeys {
		return n.Keys(), fmt.Errorf("cannot install %s: a rotation is under way; use or remove one of %v first", key, n.prints())
	}
	report, err := n.everywhere(ctx, func(m *serf.KeyManager, o *serf.KeyRequestOptions) error {
		_, err := m.InstallKeyWithOptions(key.Text(), o)
		return err
	}, func(r KeyReport) []string { alive, _ := r.Without(key.Fingerprint()); return alive })
	if err != nil {
		return report, fmt.Errorf("cannot install %s everywhere: %w", key, err)
	}
	return report, nil
}

// UseKey has the whole pool encrypt with a key that was installed, and returns when every live member does.
// It refuses if a known member does not have the key, a failed one too unless force is given: such a
// member can come back only after it was given the keys again.
func (n *Node) UseKey(ctx context.Context, key Fingerprint, force bool) (KeyReport, error) {
	k, err := n.own(key)
	if err != nil {
		return KeyReport{}, fmt.Errorf("cannot use the gossip key: %w", err)
	}
	if off := n.cutOff(ctx, force, func(r KeyReport) (alive, failed []string) { return r.Without(key) }); len(off) > 0 {
		return n.Keys(), fmt.Errorf("cannot use %s: %s would be cut off, for lack of it; install it first", k, strings.Join(off, ", "))
	}
	report, err := n.everywhere(ctx, func(m *serf.KeyManager, o *serf.KeyRequestOptions) error {
		_, err := m.UseKeyWithOptions(k.Text(), o)
		return err
	}, func(r KeyReport) []string { alive, _ := r.NotUsing(key); return alive })
	if err != nil {
		return report, fmt.Errorf("cannot have everybody use %s: %w", k, err)
	}
	return report, nil
}

// RemoveKey takes a key that nobody uses any more from the whole pool, and returns when no live member has
// it. It refuses if a known member may still use it, a failed one only unless force is given.
func (n *Node) RemoveKey(ctx context.Context, key Fingerprint, force bool) (KeyReport, error) {
	ring := n.Keyring()
	if len(ring) == 0 {
		return KeyReport{}, fmt.Errorf("cannot remove a gossip key: %w", errNoKeys)
	}
	used := ring[0].Fingerprint()
	if used == key {
		return n.Keys(), fmt.Errorf("cannot remove gossip key %s: it is in use; install and use another one first", key)
	}
	k, err := n.own(key)
	if err != nil {
		return n.Keys(), fmt.Errorf("cannot remove the gossip key: %w", err)
	}
	if off := n.cutOff(ctx, force, func(r KeyReport) (alive, failed []string) { return r.NotUsing(used) }); len(off) > 0 {
		return n.Keys(), fmt.Errorf("cannot remove %s: %s would be cut off, not using %s yet", k, strings.Join(off, ", "), used)
	}
	report, err := n.everywhere(ctx, func(m *serf.KeyManager, o *serf.KeyRequestOptions) error {
		_, err := m.RemoveKeyWithOptions(k.Text(), o)
		return err
	}, func(r KeyReport) []string { alive, _ := r.With(key); return alive })
	if err != nil {
		return report, fmt.Errorf("cannot remove %s everywhere: %w", k, err)
	}
	return report, nil
}

// settle is how long a member may take to tell of keys that it has already.
const settle = 10 * time.Second

// cutOff lists the members that stand against a change of keys. Live ones get time: what another node was
// told may not have reached this one.
func (n *Node) cutOff(ctx context.Context, force bool, against func(KeyReport) (alive, failed []string)) []string {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for {
		alive, failed := against(n.Keys())
		if force {
			failed = nil
		}
		if len(alive) == 0 {
			return failed
		}
		select {
		case <-ctx.Done():
			return append(alive, failed...)
		case <-n.loops:
			return append(alive, failed...)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// own finds a key in this node's ring.
func (n *Node) own(key Fingerprint) (Key, error) {
	if n.ring == nil {
		return Key{}, errNoKeys
	}
	k, ok := n.ring.find(key)
	if !ok {
		return Key{}, fmt.Errorf("there is no key %s here, only %v", key, n.prints())
	}
	return k, nil
}

func (n *Node) prints() []Fingerprint {
	var out []Fingerprint
	for _, k := range n.Keyring() {
		out = append(out, k.Fingerprint())
	}
	return out
}

// relays is how many members repeat each answer about keys, so that a lost packet costs nothing.
const relays = 2

// mostAsks is how often the pool is asked where nobody is missing and some answers did not come.
const mostAsks = 3

// everywhere has the library ask the pool until nobody is missing. What counts is not the answer to the
// question but what each member publishes once its keys are safe. But that may be of before another node changed them,
// so nobody is passed over for it: all are asked, again if not all answered.
func (n *Node) everywhere(ctx context.Context, ask func(*serf.KeyManager, *serf.KeyRequestOptions) error, missing func(KeyReport) []string) (KeyReport, error) {
	var asked time.Time
	answered, asks := false, 0
	for {
		report := n.Keys()
		left := missing(report)
		if len(left) == 0 && (answered || asks >= mostAsks) {
			return report, nil
		}
		if len(left) == 0 || time.Since(asked) >= queryTime {
			if !n.begin() {
				return report, errors.New("the node is stopping")
			}
			err := ask(n.serf.KeyManager(), &serf.KeyRequestOptions{RelayFactor: relays})
			if err != nil {
				n.log.Debug("not every member answered about keys yet", "error", err)
			}
			answered, asks = answered || err == nil, asks+1
			n.joins.Done()
			asked = time.Now()
			n.nudge()
		}
		if len(left) == 0 {
			continue // each round asked, and took its time where an answer was missing
		}
		select {
		case <-ctx.Done():
			return report, fmt.Errorf("%s did not report it: %w", strings.Join(left, ", "), ctx.Err())
		case <-n.loops:
			return report, errors.New("the node is stopping")
		case <-time.After(20 * time.Millisecond):
		}
	}
}
