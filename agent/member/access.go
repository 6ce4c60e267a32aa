package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
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
		err = json.Unmarshal(data, &a)
	}
	if err != nil {
		return a, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return a, nil
}
