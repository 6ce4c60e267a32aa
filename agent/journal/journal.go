// Package journal is the crash-safe record of what a host has and is doing: for every gateway the
// incarnation, the process, the organization it was granted and how far the change in progress is. An
// agent that starts reads it and finishes or undoes; without a coordinator it is all the agent knows.
//
// Assumptions: a write that returned survives a crash of the agent, only a sync survives a crash of the
// machine. After the latter no gateway process runs any more, so that what the journal does not know is
// also not there.
package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/steps"
)

// Gateway is what is known of one gateway of this host.
type Gateway struct {
	Gateway     id.Gateway      `json:"gateway"`
	Wanted      Wanted          `json:"wanted"`
	Incarnation uint64          `json:"incarnation"`        // that process, state directory and grant belong to
	Process     *driver.Process `json:"process,omitempty"`  // nil: none was started, or it was seen to end
	Used        bool            `json:"used,omitempty"`     // the state directory may hold something, or a process may run
	Restarts    int             `json:"restarts,omitempty"` // of this incarnation
	Grant       *Grant          `json:"grant,omitempty"`    // taken up by this incarnation
	Change      steps.Change    `json:"change,omitzero"`    // that takes up the grant
	Ending      steps.Change    `json:"ending,omitzero"`    // that ends the incarnation before Incarnation, for its report
	Epoch       id.Epoch        `json:"epoch,omitempty"`    // the highest that was ever granted here
	Code        string          `json:"code,omitempty"`     // why the grant was not taken up
	Message     string          `json:"message,omitempty"`  // the same for people
}

// Wanted is the coordinator's last word on a gateway, the grant apart.
type Wanted struct {
	Target      string       `json:"target"`
	Incarnation uint64       `json:"incarnation"`
	Pool        string       `json:"pool,omitempty"`
	Release     string       `json:"release,omitempty"`
	Limits      api.Limits   `json:"limits,omitzero"`
	Drain       api.Duration `json:"drain,omitempty"`
	Lease       api.Duration `json:"lease,omitempty"`
}

// Grant is the organization that a gateway was given. Its body, which may be large, is stored apart.
type Grant struct {
	Organization id.Organization `json:"organization"`
	Allocation   id.Allocation   `json:"allocation"`
	Epoch        id.Epoch        `json:"epoch"`
	Version      uint64          `json:"version"`          // of the body that the gateway has
	Served       bool            `json:"served,omitempty"` // it was verified once, or was about to be: only the coordinator ends it
}

// Entry is a gateway with the body of its grant, when it has one.
type Entry struct {
	Gateway
	Body *api.Activate
}

// Journal is the open record. It is safe for use by several goroutines.
type Journal struct{ log *log }

// Options of a journal.
type Options struct {
	Path   string // of the file; its directory exists
	FS     fsx.FS // reaches the directory of the file
	Logger hclog.Logger
}

const (
	gatewayKey = "gateway/"
	bodyKey    = "body/"
)

// Open reads the journal at a path, or begins one there.
func Open(o Options) (*Journal, error) {
	l, err := openLog(o.FS, o.Logger.Named("journal"), o.Path, openFile)
	if err != nil {
		return nil, err
	}
	return &Journal{log: l}, nil
}

// Entries is everything the journal knows, by gateway.
func (j *Journal) Entries() ([]Entry, error) {
	j.log.mu.Lock()
	defer j.log.mu.Unlock()
	entries, err := entriesOf(j.log.values)
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w; run the version that wrote it, or move it away to start with an empty one", j.log.path, err)
	}
	return entries, nil
}

// entriesOf reads the values of a journal, in the order of gateways.
func entriesOf(values map[string]json.RawMessage) ([]Entry, error) {
	var out []Entry
	for key, value := range values {
		name, ok := strings.CutPrefix(key, gatewayKey)
		if !ok {
			continue
		}
		var e Entry
		if err := json.Unmarshal(value, &e.Gateway); err != nil {
			return nil, fmt.Errorf("the record %q cannot be read: %w", fault.Shorten(key), err)
		}
		if err := e.check(name); err != nil {
			return nil, fmt.Errorf("the record %q: %w", fault.Shorten(key), err)
		}
		if body, ok := values[bodyKey+name]; ok && e.Grant != nil {
			e.Body = new(api.Activate)
			if err := json.Unmarshal(body, e.Body); err != nil {
				return nil, fmt.Errorf("the organization of gateway %s cannot be read: %w", name, err)
			}
		}
		out = append(out, e)
	}
	sort.Slice(out, func(i, k int) bool { return out[i].Gateway.Gateway < out[k].Gateway.Gateway })
	return out, nil
}

// check refuses what no assignment can have brought, so that nothing reaches a path, a route or a time limit that did
// not pass when it came.
func (g *Gateway) check(name string) error {
	if gw, err := id.ParseGateway(name); err != nil || gw != g.Gateway {
		return fmt.Errorf("it is of gateway %q", fault.Shorten(string(g.Gateway)))
	}
	if w := g.Wanted; w.Drain < 0 || w.Lease < 0 || w.Limits.BodyBytes < 0 || g.Restarts < 0 {
		return errors.New("there is a number below zero")
	}
	if g.Grant == nil {
		return nil
	}
	if org, err := id.ParseOrganization(string(g.Grant.Organization)); err != nil || org != g.Grant.Organization {
		return fmt.Errorf("%q is no organization", fault.Shorten(string(g.Grant.Organization)))
	}
	if _, err := id.ParseAllocation(string(g.Grant.Allocation)); err != nil {
		return err
	}
	if g.Grant.Epoch == 0 {
		return errors.New("a grant has no epoch")
	}
	return nil
}

// Put stores what is known of a gateway.
func (j *Journal) Put(g *Gateway) error {
	return j.put(gatewayKey+string(g.Gateway), g)
}

// PutGrant stores what is known of a gateway together with the body of its grant, which comes first: a
// machine that crashes meanwhile never leaves a grant without its body.
func (j *Journal) PutGrant(g *Gateway, body *api.Activate) error {
	first, err := recordOf(bodyKey+string(g.Gateway), body)
	if err != nil {
		return err
	}
	second, err := recordOf(gatewayKey+string(g.Gateway), g)
	if err != nil {
		return err
	}
	return j.log.append(first, second)
}

// PutBody stores a newer body of the grant that the gateway has.
func (j *Journal) PutBody(g id.Gateway, body *api.Activate) error {
	return j.put(bodyKey+string(g), body)
}

// DropBody forgets the body of a grant that has ended.
func (j *Journal) DropBody(g id.Gateway) error {
	if !j.has(bodyKey + string(g)) {
		return nil
	}
	return j.log.append(record{Key: bodyKey + string(g)})
}

// Remove forgets a gateway that is gone.
func (j *Journal) Remove(g id.Gateway) error {
	if err := j.DropBody(g); err != nil {
		return err
	}
	if !j.has(gatewayKey + string(g)) {
		return nil
	}
	return j.log.append(record{Key: gatewayKey + string(g)})
}

// Sync returns when everything stored before is on disk.
func (j *Journal) Sync(ctx context.Context) error { return j.log.sync(ctx) }

// Close syncs and closes the journal.
func (j *Journal) Close() error { return j.log.close() }

func (j *Journal) put(key string, v any) error {
	r, err := recordOf(key, v)
	if err != nil {
		return err
	}
	return j.log.append(r)
}

func recordOf(key string, v any) (record, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return record{}, fmt.Errorf("cannot encode the journal's record of %s: %w", key, err)
	}
	return record{Key: key, Value: value}, nil
}

func (j *Journal) has(key string) bool {
	j.log.mu.Lock()
	defer j.log.mu.Unlock()
	_, ok := j.log.values[key]
	return ok
}
