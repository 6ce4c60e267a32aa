package trust

import (
	"fmt"
	"slices"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// Restored gives the record to keep when the state is replaced by a saved one with this record; nil: it has
// none. What this cluster was changed to since stays, or its members would no longer trust each other. A
// cluster that still has what its key alone gives, such as one that was set up anew, takes the saved one
// over. What another cluster key sealed is refused.
func (k *Keeper) Restored(saved *state.Trust) (*state.Trust, error) {
	if saved == nil {
		return nil, nil
	}
	if _, err := pki.DecodeAuthority(saved.Authority, k.opts.Key); err != nil {
		return nil, fmt.Errorf("its certificates were made with another cluster key: %w; restore it in a cluster with the key of the one that saved it", err)
	}
	if _, err := k.openKeyring(saved.Keyring); err != nil {
		return nil, err
	}
	k.mu.Lock()
	now, present, keyring := k.record, k.bundle, k.keyring
	k.mu.Unlock()
	first, err := pki.FoundingAuthority(k.opts.Key, k.opts.Now())
	if err != nil {
		return nil, err
	}
	firstKey, err := pki.FoundingGossip(k.opts.Key)
	if err != nil {
		return nil, err
	}
	out := *saved
	if present.Pin() != first.Root().Pin() {
		out.Bundle, out.Authority = []byte(now.Bundle), now.Authority
	}
	if !slices.Equal(keyring, []string{encodeKey(firstKey)}) {
		out.Keyring = now.Keyring
	}
	return &out, nil
}
