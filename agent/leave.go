package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// leavingFile is there while this machine is being switched off.
func leavingFile(c *Config) string { return filepath.Join(c.RunDir, "leaving") }

// Leave notes that this machine is being switched off. An agent that ends after that, until the next one starts, takes
// leave of the coordinators, which bring what the host serves to other hosts at once. An agent that ends without it may
// come back within a second: everything waits for it.
func Leave(c *Config) error {
	if err := os.WriteFile(leavingFile(c), nil, 0o600); err != nil {
		return fmt.Errorf("cannot note that this machine is being switched off: %w; run this as the agent's user, after the agent has run", err)
	}
	return nil
}

// stay takes back what Leave has noted: this machine runs.
func stay(c *Config) error {
	if err := os.Remove(leavingFile(c)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot take back that this machine is being switched off: %w; remove the file", err)
	}
	return nil
}

// leaving reports whether this machine is being switched off.
func (a *Agent) leaving() bool {
	_, err := os.Lstat(leavingFile(a.c))
	return err == nil
}

// leaveTime is how long the end of the machine may be held up for the word to the gossip.
const leaveTime = 3 * time.Second

// leaveGossip tells the gossip that the host goes, if the machine does. The coordinators know by then.
func (a *Agent) leaveGossip(ctx context.Context) error {
	if !a.leaving() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	if err := a.member.Leave(ctx); err != nil {
		a.log.Warn("the gossip was not told that this machine is being switched off", "error", err)
	}
	return nil
}
