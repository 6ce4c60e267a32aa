package consensus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const markFile = "CLOSED"

// mark says where the log ended when the node was closed in good order. The log store takes damage at the
// end of its newest file for a write cut short and drops it; after a crash that is right, after an orderly
// close it would lose acknowledged entries without a word.
type mark struct {
	LastIndex *uint64 `json:"last_index"` // nil: it does not say
}

// parseMark gives the index of the last entry.
func parseMark(raw []byte) (uint64, error) {
	var m mark
	if err := json.Unmarshal(raw, &m); err != nil {
		return 0, err
	}
	if m.LastIndex == nil {
		return 0, errors.New("it does not say where the log ended")
	}
	return *m.LastIndex, nil
}

// setMark is called when nothing writes to the log any more.
func (n *Node) setMark() error {
	last, err := n.guard.LastIndex()
	if err != nil {
		return fmt.Errorf("cannot read the end of the log: %w", err)
	}
	raw, err := json.Marshal(mark{&last})
	if err != nil {
		return fmt.Errorf("cannot encode %s: %w", markFile, err)
	}
	return n.dir.writeFile(markFile, append(raw, '\n'))
}

// checkMark compares the log with the mark, if there is one, and takes the mark away for good before
// anything is written.
func (n *Node) checkMark() error {
	path := filepath.Join(n.dir.path, markFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a first start, or one after a crash
	}
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", path, err)
	}
	marked, err := parseMark(raw)
	if err != nil {
		return fmt.Errorf("cannot use %s: it is damaged: %w; if the rest of the directory is sound, remove this file", path, err)
	}
	last, err := n.guard.LastIndex()
	if err != nil {
		return fmt.Errorf("cannot read the end of the log: %w", err)
	}
	if last != marked {
		return fmt.Errorf("the log ended with entry %d when the node was closed and ends with entry %d now, so it was damaged on the disk; %s", marked, last, remedyDamaged)
	}
	if err := os.Remove(path); err != nil {
		return n.dir.refused("cannot remove a file from the data directory", err)
	}
	return n.dir.sync()
}
