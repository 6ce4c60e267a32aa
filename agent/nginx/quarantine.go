package nginx

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
)

// quarantined is a part that is left out until its digest changes.
type quarantined struct {
	Part    string    `json:"part"`
	Digest  string    `json:"digest"` // of what was refused; empty when our own check refused it
	Message string    `json:"message"`
	Since   time.Time `json:"since"`
}

func quarantineFile(l layout, part string) string {
	return filepath.Join(l.quarantine(), strings.ReplaceAll(part, "/", "_")+".json")
}

// loadQuarantine reads what nginx refused before. A damaged record is dropped: the part is tested again.
func loadQuarantine(f fsx.FS, l layout) (map[string]quarantined, error) {
	entries, err := f.ReadDir("nginx.quarantine.list", l.quarantine())
	if err != nil {
		return nil, fmt.Errorf("cannot list quarantined parts: %w", err)
	}
	out := map[string]quarantined{}
	for _, entry := range entries {
		path := filepath.Join(l.quarantine(), entry.Name())
		b, err := f.ReadFile("nginx.quarantine.read", path)
		var q quarantined
		if err != nil || json.Unmarshal(b, &q) != nil || quarantineFile(l, q.Part) != path {
			if err := f.RemoveAll("nginx.leftovers.quarantine", path); err != nil {
				return nil, fmt.Errorf("cannot remove damaged record %s: %w", path, err)
			}
			continue
		}
		out[q.Part] = q
	}
	return out, nil
}

// partDigest identifies a part by its text and, for a site with a certificate, the file's content. The
// empty string: the configuration has no such part.
func (r renderer) partDigest(cfg Config, part string) string {
	one := keep(cfg, func(p string) bool { return p == part })
	if len(one.Slots)+len(one.Sites) == 0 {
		return ""
	}
	return r.digest(one)
}

// isolate records parts that nginx refused.
func (e *Engine) isolate(cfg Config, bad map[string]string) error {
	for part, message := range bad {
		q := quarantined{Part: part, Digest: e.r.partDigest(cfg, part), Message: message, Since: e.opts.Now().UTC()}
		b, err := json.Marshal(q)
		if err != nil {
			return fmt.Errorf("cannot record that %s is quarantined: %w", part, err)
		}
		if err := fsx.WriteAtomic(e.fs, "nginx.quarantine", quarantineFile(e.l, part), append(b, '\n'), 0o600); err != nil {
			return transient(err, "the disk did not take the quarantine of %s", part)
		}
		e.noteQuarantined(q)
	}
	return nil
}

func (e *Engine) noteQuarantined(q quarantined) {
	e.change(func(st *state) { st.quarantine[q.Part] = q })
	e.log.Warn("part of the configuration is quarantined", "part", q.Part, "message", q.Message)
	e.event(Event{Type: PartQuarantined, Part: q.Part, Reason: q.Message})
}

// review brings the quarantine in line with what is wanted now: parts that changed or that nobody wants
// are released, parts that our own checks refuse are noted. It returns the parts to leave out.
func (e *Engine) review(cfg Config, refused []refusal) (map[string]bool, error) {
	own := map[string]string{}
	for _, r := range refused {
		own[r.part] = r.reason
	}
	before := e.snapshot().quarantine
	for part, q := range before {
		if reason, still := own[part]; still && q.Digest == "" && q.Message == reason {
			continue
		}
		if q.Digest != "" && q.Digest == e.r.partDigest(cfg, part) {
			continue
		}
		if q.Digest != "" {
			if err := e.fs.Remove("nginx.quarantine.remove", quarantineFile(e.l, part)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, transient(err, "cannot release %s", part)
			}
		}
		e.change(func(st *state) { delete(st.quarantine, part) })
		e.event(Event{Type: PartReleased, Part: part})
	}
	now := e.snapshot().quarantine
	for part, reason := range own {
		if _, noted := now[part]; !noted {
			e.noteQuarantined(quarantined{Part: part, Message: reason, Since: e.opts.Now().UTC()})
		}
	}
	out := map[string]bool{}
	for part := range e.snapshot().quarantine {
		out[part] = true
	}
	return out, nil
}

func sortQuarantined(parts []api.QuarantinedPart) {
	slices.SortFunc(parts, func(a, b api.QuarantinedPart) int { return strings.Compare(a.Part, b.Part) })
}
