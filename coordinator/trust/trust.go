// Package trust is this coordinator's part in the trust of its cluster: its own credentials, the CA that
// issues everybody else's, and the gossip keys. What is secret of them is in the log sealed with the
// cluster key, which each coordinator keeps in a file and which never goes through the log.
//
// A coordinator issues its own certificate, at each start and whenever it is time: it has the CA anyway.
// What it needs for that before it has met the others is in trust.json, a copy of the record in the state.
// Without that file it begins with the founding CA, which is made from the cluster key alone.
package trust

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

const (
	recordFile    = "trust.json"
	bundleFile    = "ca.pem"
	recordVersion = 1
	// retry is the pause after something could not be done.
	retry = time.Second
)

// Proposer puts a command into the log and returns after it was applied here.
type Proposer interface {
	Propose(ctx context.Context, c command.Command) (command.Result, uint64, error)
}

// Options of a Keeper. All but Hosts and Life are needed.
type Options struct {
	FS     fsx.FS // may write Dir
	Dir    string // existing directory of this coordinator's own
	NodeID string
	Key    pki.Key
	Hosts  []string      // names and addresses of the API, for callers without the cluster's own check
	Life   time.Duration // of certificates; default pki.DefaultLeafLife
	Store  *state.Store
	Logger hclog.Logger
	Now    func() time.Time
}

// Record is what all coordinators agree on. As JSON it is trust.json, and what a coordinator that joins gets.
type Record struct {
	Version   int    `json:"version"`
	Index     uint64 `json:"index"`     // of the state's record; 0: the founding one, which no leader has put there yet
	Bundle    string `json:"bundle"`    // PEM
	Authority []byte `json:"authority"` // sealed
	Keyring   []byte `json:"keyring"`   // sealed
}

// Keeper holds the trust of one coordinator.
type Keeper struct {
	opts    Options
	log     hclog.Logger
	cluster string
	self    pki.Identity
	live    *pki.Live

	turn    sync.Mutex // held by follow: a record is never replaced by an older one
	mu      sync.Mutex // guards what follows
	record  Record
	ca      *pki.Authority
	bundle  pki.Bundle
	keyring []string
}

// Open reads what the coordinator knows, or founds it, and issues its credentials.
func Open(o Options) (*Keeper, error) {
	if o.Life == 0 {
		o.Life = pki.DefaultLeafLife
	}
	k := &Keeper{opts: o, log: o.Logger}
	var err error
	if k.cluster, err = pki.FoundingCluster(o.Key); err != nil {
		return nil, err
	}
	if k.self, err = pki.NewIdentity(k.cluster, pki.RoleCoordinator, o.NodeID); err != nil {
		return nil, err
	}
	record, err := k.readRecord()
	if err != nil {
		return nil, err
	}
	if err := k.take(record); err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", k.file(), err)
	}
	own, err := k.issueOwn()
	if err != nil {
		return nil, err
	}
	k.live = pki.NewLive(own, pki.LiveOptions{Now: o.Now})
	return k, k.writeBundle()
}

// writeBundle puts the trusted CAs where people's tools can read them (`demiurge --ca-cert`).
func (k *Keeper) writeBundle() error {
	return save(k.opts.FS, "trust.bundle", filepath.Join(k.opts.Dir, bundleFile), []byte(k.Bundle().PEM()), 0o644)
}

// save replaces a file of a coordinator's data directory.
func save(f fsx.FS, label, path string, data []byte, perm fs.FileMode) error {
	if err := fsx.WriteAtomic(f, label, path, data, perm); err != nil {
		return fmt.Errorf("cannot write %s: %w; free space or repair the disk of the data directory", path, err)
	}
	return nil
}

// Cluster is the id of the cluster.
func (k *Keeper) Cluster() string { return k.cluster }

// Live is this coordinator's credentials.
func (k *Keeper) Live() *pki.Live { return k.live }

// Bundle is whom the cluster trusts.
func (k *Keeper) Bundle() pki.Bundle {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.bundle
}

// Keyring is the gossip keys in base64, the one in use first.
func (k *Keeper) Keyring() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keyring
}

// Key is the cluster key, for the one answer that lets a coordinator join.
func (k *Keeper) Key() pki.Key { return k.opts.Key }

// Record is what a coordinator that joins begins with.
func (k *Keeper) Record() Record {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.record
}

// Pin names the CA that signs now.
func (k *Keeper) Pin() pki.Pin { return k.Bundle().Pin() }

// Issue makes a certificate for a signing request. It answers the certificate and whom to trust, both PEM.
func (k *Keeper) Issue(request string, role pki.Role, name string, now time.Time) (certificate, ca string, err error) {
	who, err := pki.NewIdentity(k.cluster, role, name)
	if err != nil {
		return "", "", err
	}
	k.mu.Lock()
	authority, bundle := k.ca, k.bundle
	k.mu.Unlock()
	certificate, err = authority.Issue(request, pki.Grant{Identity: who, Life: k.opts.Life, Now: now})
	return certificate, bundle.PEM(), err
}

func (k *Keeper) file() string { return filepath.Join(k.opts.Dir, recordFile) }

func (k *Keeper) readRecord() (Record, error) {
	data, err := os.ReadFile(k.file())
	if errors.Is(err, fs.ErrNotExist) {
		return k.founding()
	}
	if err != nil {
		return Record{}, fmt.Errorf("cannot read the cluster's certificates: %w", err)
	}
	return ParseRecord(data)
}

// ParseRecord reads trust.json.
func ParseRecord(data []byte) (Record, error) {
	var r Record
	wrong := func(why error, remedy string) (Record, error) {
		return Record{}, fmt.Errorf("cannot read the cluster's certificates in %s: %w; %s", recordFile, why, remedy)
	}
	var says struct{ Version int } // a later format may have more in it, and in other types
	err := json.Unmarshal(data, &says)
	if says.Version > recordVersion {
		return wrong(fmt.Errorf("it has format %d and this program reads %d", says.Version, recordVersion), "use the program version that wrote it")
	}
	if err == nil && says.Version != recordVersion {
		err = fmt.Errorf("it has format %d", says.Version)
	}
	if err == nil { // it is one value and nothing else
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		err = d.Decode(&r)
	}
	if err != nil {
		return wrong(err, "join again")
	}
	return r, nil
}

// WriteRecord saves trust.json in the directory of a coordinator that has not started yet.
func WriteRecord(f fsx.FS, dir string, r Record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("cannot encode the cluster's certificates: %w", err)
	}
	return save(f, "trust.record", filepath.Join(dir, recordFile), append(data, '\n'), 0o600)
}

// founding is the record of a cluster that nobody leads yet.
func (k *Keeper) founding() (Record, error) {
	ca, err := pki.FoundingAuthority(k.opts.Key, k.opts.Now())
	if err != nil {
		return Record{}, err
	}
	first, err := pki.FoundingGossip(k.opts.Key)
	if err != nil {
		return Record{}, err
	}
	sealed, err := ca.Encode(k.opts.Key)
	if err != nil {
		return Record{}, err
	}
	keyring, err := k.sealKeyring([]string{encodeKey(first)})
	if err != nil {
		return Record{}, err
	}
	return Record{Version: recordVersion, Bundle: pki.NewBundle(ca.Root()).PEM(), Authority: sealed, Keyring: keyring}, nil
}

// take makes a record the one in use.
func (k *Keeper) take(r Record) error {
	bundle, err := pki.ParseBundle(r.Bundle)
	if err != nil {
		return err
	}
	if bundle.Cluster() != k.cluster {
		return fmt.Errorf("it belongs to cluster %s and the cluster key to %s; use the key of the cluster that this coordinator is to join", bundle.Cluster(), k.cluster)
	}
	ca, err := pki.DecodeAuthority(r.Authority, k.opts.Key)
	if err != nil {
		return err
	}
	if ca.Root().Pin() != bundle.Pin() {
		return fmt.Errorf("the CA in it is %s and the trusted one %s; join again", ca.Root().Pin(), bundle.Pin())
	}
	keyring, err := k.openKeyring(r.Keyring)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.record, k.ca, k.bundle, k.keyring = r, ca, bundle, keyring
	return nil
}

func (k *Keeper) issueOwn() (*pki.Credentials, error) {
	e, err := pki.NewEnrolment()
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	ca, bundle := k.ca, k.bundle
	k.mu.Unlock()
	now := k.opts.Now()
	certificate, err := ca.Issue(e.Request(), pki.Grant{Identity: k.self, Life: k.opts.Life, Now: now, Hosts: k.opts.Hosts})
	if err != nil {
		return nil, err
	}
	return e.Accept(certificate, bundle.PEM(), k.self, now)
}

// Run follows the record in the state and renews this coordinator's certificate, until ctx is done.
func (k *Keeper) Run(ctx context.Context) {
	for ctx.Err() == nil {
		ws := state.WatchSet{}
		ws.Add(k.opts.Store.Restored())
		k.opts.Store.View().Trust(ws) // before follow looks, so that no change falls between
		again := k.follow()
		if wait := k.live.Current().RenewAt().Sub(k.opts.Now()); wait > 0 {
			again = min(again, wait)
		} else if err := k.renew(); err != nil {
			k.log.Error("cannot renew this coordinator's certificate", "expires", k.live.Current().Expires(), "error", err)
			again = min(again, retry)
		}
		timer, cancel := context.WithTimeout(ctx, again)
		_ = ws.WatchCtx(timer) // its error is ctx's, which the loop looks at
		cancel()
	}
}

// follow takes a newer record and answers when to look again.
func (k *Keeper) follow() time.Duration {
	const never = 24 * time.Hour
	k.turn.Lock()
	defer k.turn.Unlock()
	k.mu.Lock()
	known, present := k.record.Index, k.bundle.Pin()
	k.mu.Unlock()
	have := k.opts.Store.View().Trust(nil)
	if have == nil || have.ModifyIndex == known || have.ModifyIndex < known && !names(have.Bundle, present) {
		return never
	}
	next := Record{
		Version: recordVersion, Index: have.ModifyIndex,
		Bundle: string(have.Bundle), Authority: have.Authority, Keyring: have.Keyring,
	}
	if err := k.adopt(next); err != nil {
		k.log.Error("cannot use the cluster's new certificates", "index", next.Index, "error", err)
		return retry
	}
	k.log.Info("the cluster's certificates or gossip keys changed", "index", next.Index, "ca", k.Bundle().Pin().String())
	return never
}

// names reports whether a bundle has a CA. A state without the one that signs now is from before it: of a coordinator that
// has just started, or joined, and has not heard yet what was decided since. To go back to it would be for ever, once the
// others do not accept the CA of before any more. A restored state has a lower index too, and the present CA.
func names(bundle []byte, ca pki.Pin) bool {
	b, err := pki.ParseBundle(string(bundle))
	return err != nil || slices.ContainsFunc(b.Roots(), func(r pki.Root) bool { return r.Pin() == ca })
}

// adopt saves a record before it is used: after a restart the coordinator must be able to meet the others.
func (k *Keeper) adopt(next Record) error {
	if err := WriteRecord(k.opts.FS, k.opts.Dir, next); err != nil {
		return err
	}
	before := k.Bundle()
	if err := k.take(next); err != nil {
		return err
	}
	if before.Equal(k.Bundle()) {
		return nil
	}
	return errors.Join(k.renew(), k.writeBundle())
}

func (k *Keeper) renew() error {
	next, err := k.issueOwn()
	if err != nil {
		return err
	}
	return k.live.Replace(next)
}

// Found puts the founding record into a log that has none. Only the leader can.
func (k *Keeper) Found(ctx context.Context, p Proposer) error {
	if k.opts.Store.View().Trust(nil) != nil {
		return nil
	}
	return k.put(ctx, p, k.Record(), "founding")
}

// Rotate makes a new CA. Certificates of the old one are accepted until the overlap ends; every program
// renews its own in the first half of it.
func (k *Keeper) Rotate(ctx context.Context, p Proposer, overlap time.Duration) error {
	k.mu.Lock()
	next, ca, bundle := k.record, k.ca, k.bundle
	k.mu.Unlock()
	ca, bundle, err := ca.Rotate(bundle, pki.RotateOptions{Overlap: overlap, Now: k.opts.Now()})
	if err != nil {
		return err
	}
	next.Bundle = bundle.PEM()
	if next.Authority, err = ca.Encode(k.opts.Key); err != nil {
		return err
	}
	return k.put(ctx, p, next, "CA rotated to "+ca.Root().Pin().String())
}

// PutKeyring replaces the gossip keys, the one in use first.
func (k *Keeper) PutKeyring(ctx context.Context, p Proposer, keys []string) error {
	next := k.Record()
	var err error
	if next.Keyring, err = k.sealKeyring(keys); err != nil {
		return err
	}
	return k.put(ctx, p, next, "gossip keys changed")
}

// put proposes a record made from the one that is known here.
func (k *Keeper) put(ctx context.Context, p Proposer, next Record, reason string) error {
	result, _, err := p.Propose(ctx, command.PutTrust{
		Meta: command.Meta{At: k.opts.Now(), Actor: "trust"}, Base: next.Index,
		Bundle: []byte(next.Bundle), Authority: next.Authority, Keyring: next.Keyring, Reason: reason,
	})
	if err != nil {
		return err
	}
	if result.Err != nil {
		return result.Err
	}
	if wait := k.follow(); wait == retry {
		return errors.New("the change is in the log but cannot be used here: the coordinator's log has the cause")
	}
	return nil
}
