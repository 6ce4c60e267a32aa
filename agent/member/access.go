package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/gossip"
)

// accessFile is where the pool is and its keys, as a coordinator told last.
const accessFile = "pool.json"

// Keep saves what a host needs to enter the gossip, in the directory that Open is given.
func Keep(files fsx.FS, dir string, a api.GossipAccess) error {
	if err := files.MkdirAll("member.dir", dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of the gossip: %w", err)
	}
	data, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("cannot encode where the gossip is: %w", err)
	}
	if err := fsx.WriteAtomic(files, "member.access", filepath.Join(dir, accessFile), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("cannot keep where the gossip is: %w", err)
	}
	return nil
}

func read(files fsx.FS, dir string) (api.GossipAccess, error) {
	var a api.GossipAccess
	path := filepath.Join(dir, accessFile)
	data, err := files.ReadFile("member.access.read", path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err == nil {
		a, err = parse(data)
	}
	if err != nil {
		return api.GossipAccess{}, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return a, nil
}

// parse reads what Keep has written.
func parse(data []byte) (api.GossipAccess, error) {
	var a api.GossipAccess
	if err := json.Unmarshal(data, &a); err != nil {
		return a, err
	}
	return a, check(a)
}

// check refuses what a gossip cannot be entered with.
func check(a api.GossipAccess) error {
	for _, key := range a.Keys {
		if _, err := gossip.ParseKey(key); err != nil {
			return err
		}
	}
	return gossip.CheckSeeds(a.Addresses)
}
