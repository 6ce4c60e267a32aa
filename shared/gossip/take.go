package gossip

import (
	"errors"
	"fmt"
	"slices"
)

// FollowKeys takes the keys that a state of coordinators has, as Key.Text gives them. With two of them a rotation is under
// way, which tells by the gossip when which one is used.
func (n *Node) FollowKeys(texts []string) error {
	keys := make([]Key, len(texts))
	for i, text := range texts {
		var err error
		if keys[i], err = ParseKey(text); err != nil {
			return err
		}
	}
	if used := n.Keyring(); len(keys) == 2 && len(used) > 0 && used[0] == keys[1] {
		keys[0], keys[1] = keys[1], keys[0]
	}
	return n.TakeKeys(keys)
}

// TakeKeys makes the given keys, the one in use first, those of this node alone. The pool is not told: it is
// for a member that was away while the pool's keys were rotated and has learned of it on another way. Keys
// that are the same already are left alone.
func (n *Node) TakeKeys(keys []Key) error {
	if n.ring == nil {
		return fmt.Errorf("cannot take gossip keys: %w", errNoKeys)
	}
	if len(keys) == 0 || len(keys) > maxKeys {
		return fmt.Errorf("cannot take %d gossip keys: want one or %d", len(keys), maxKeys)
	}
	live, next := n.ring.live, keys[0]
	for _, k := range keys {
		if k.IsZero() {
			return errors.New("cannot take an empty gossip key")
		}
	}
	// The library removes the last key of a ring without moving others, which somebody may be reading, so
	// there are never more than two.
	_, had := n.ring.find(next.Fingerprint())
	for _, k := range live.GetKeys()[1:] {
		if !had || !holds(keys, k) {
			if err := live.RemoveKey(k); err != nil {
				return fmt.Errorf("cannot drop gossip key %s: %w", fingerprint(k), err)
			}
		}
	}
	if err := live.AddKey([]byte(next.bytes)); err != nil {
		return fmt.Errorf("cannot take %s: %w", next, err)
	}
	if err := live.UseKey([]byte(next.bytes)); err != nil {
		return fmt.Errorf("cannot use %s: %w", next, err)
	}
	for _, k := range live.GetKeys()[1:] {
		if !holds(keys, k) {
			if err := live.RemoveKey(k); err != nil {
				return fmt.Errorf("cannot drop gossip key %s: %w", fingerprint(k), err)
			}
		}
	}
	for _, k := range keys[1:] {
		if err := live.AddKey([]byte(k.bytes)); err != nil {
			return fmt.Errorf("cannot take %s: %w", k, err)
		}
	}
	n.nudge()
	return nil
}

func holds(keys []Key, k []byte) bool {
	return slices.ContainsFunc(keys, func(have Key) bool { return have.bytes == string(k) })
}
