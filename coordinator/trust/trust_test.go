package trust_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/coordinator/fsm"
	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/coordinator/trust"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// patience is how long a test waits for a condition on a busy machine.
const patience = 30 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// cluster is a log of one member, which several keepers follow as if each had its own copy.
type cluster struct {
	t      *testing.T
	key    pki.Key
	offset atomic.Int64 // of the clock, in nanoseconds

	mu      sync.Mutex
	store   *state.Store
	machine *fsm.FSM
	index   uint64
	lost    atomic.Bool // answers of Propose
}

func newCluster(t *testing.T) *cluster {
	store := state.New()
	return &cluster{t: t, key: pki.NewKey(), store: store, machine: fsm.New(store, nil)}
}

func (c *cluster) now() time.Time { return time.Now().Add(time.Duration(c.offset.Load())) }

// Propose applies a command.
func (c *cluster) Propose(_ context.Context, cmd command.Command) (command.Result, uint64, error) {
	data, err := command.Encode(cmd)
	if err != nil {
		return command.Result{}, 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost.Load() {
		return command.Result{}, 0, errors.New("leadership lost")
	}
	c.index++
	return c.machine.Apply(&raft.Log{Index: c.index, Data: data}).(command.Result), c.index, nil
}

// open makes the keeper of a coordinator.
func (c *cluster) open(dir, node string, key pki.Key) (*trust.Keeper, error) {
	files, err := fsx.NewOS(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = files.Close() })
	return trust.Open(trust.Options{FS: files, Dir: dir, NodeID: node, Key: key, Store: c.store, Logger: hclog.NewNullLogger(), Now: c.now})
}

// keeper is one that runs.
func (c *cluster) keeper(dir, node string) *trust.Keeper {
	c.t.Helper()
	k, err := c.open(dir, node, c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ended by the clean-up
		defer close(done)
		k.Run(ctx)
	}()
	c.t.Cleanup(func() {
		cancel()
		<-done
	})
	return k
}

// meets reports whether two sides let each other in as coordinators.
func meets(t *testing.T, server, client *pki.Live) bool {
	t.Helper()
	peer := pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}}
	in, err := server.Server(peer, "h2")
	if err != nil {
		t.Fatal(err)
	}
	out, err := client.Client(peer, "h2")
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() { // ends with the pipe
		conn := tls.Server(far, in)
		err := conn.Handshake()
		served <- err
		_ = far.Close()
	}()
	out.ServerName = "c"
	conn := tls.Client(near, out)
	err = conn.Handshake()
	if err == nil {
		_, err = conn.Read(make([]byte, 1)) // the server's verdict on the client
	}
	_ = near.Close()
	return <-served == nil && !strings.Contains(err.Error(), "tls:")
}

func TestCoordinatorsOfOneKeyTrustEachOther(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	a, b := c.keeper(t.TempDir(), "c1"), c.keeper(t.TempDir(), "c2")
	if a.Cluster() != b.Cluster() || a.Pin() != b.Pin() || !slices.Equal(a.Keyring(), b.Keyring()) {
		t.Error("two coordinators with one key founded two clusters")
	}
	if !meets(t, a.Live(), b.Live()) {
		t.Error("they do not trust each other")
	}
	stranger := other.keeper(t.TempDir(), "c2")
	if stranger.Cluster() == a.Cluster() || slices.Equal(stranger.Keyring(), a.Keyring()) {
		t.Error("two keys made one cluster")
	}
	if meets(t, a.Live(), stranger.Live()) || meets(t, stranger.Live(), a.Live()) {
		t.Error("a coordinator of another cluster gets in")
	}
}

// TestSecurityExpiredCoordinator: a certificate that was not renewed in time opens nothing.
func TestSecurityExpiredCoordinator(t *testing.T) {
	c := newCluster(t)
	idle, err := c.open(t.TempDir(), "c1", c.key) // does not run, so renews nothing
	if err != nil {
		t.Fatal(err)
	}
	c.offset.Store(int64(pki.DefaultLeafLife + time.Hour))
	fresh := c.keeper(t.TempDir(), "c2")
	if meets(t, fresh.Live(), idle.Live()) {
		t.Error("an expired certificate gets in")
	}
	if _, err := c.open(t.TempDir(), "c1", c.key); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// TestRotationOverlap: while both CAs count everybody is let in; afterwards only who has the new one.
func TestRotationOverlap(t *testing.T) {
	c := newCluster(t)
	a, b := c.keeper(t.TempDir(), "c1"), c.keeper(t.TempDir(), "c2")
	away, err := c.open(t.TempDir(), "c3", c.key) // hears nothing of what follows
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := a.Found(ctx, c); err != nil {
		t.Fatal(err)
	}
	if err := a.Found(ctx, c); err != nil {
		t.Errorf("a second time: %v", err)
	}
	before := a.Pin()
	if err := a.Rotate(ctx, c, 4*time.Hour); err != nil {
		t.Fatal(err)
	}
	if a.Pin() == before || len(a.Bundle().Roots()) != 2 {
		t.Errorf("pin %s after %s, %d roots", a.Pin(), before, len(a.Bundle().Roots()))
	}
	eventually(t, "the other coordinator follows", func() bool { return b.Pin() == a.Pin() })
	eventually(t, "they meet with the new CA", func() bool { return meets(t, a.Live(), b.Live()) && meets(t, b.Live(), a.Live()) })
	if !meets(t, a.Live(), away.Live()) {
		t.Error("within the overlap, the old certificate is refused")
	}
	c.offset.Store(int64(5 * time.Hour))
	if meets(t, a.Live(), away.Live()) {
		t.Error("after the overlap, the old certificate gets in")
	}
	if !meets(t, a.Live(), b.Live()) {
		t.Error("after the overlap, the new certificate is refused")
	}
}

// TestAnOlderStateIsNotFollowed: a coordinator that was started, or has joined, begins with a state from before what its
// trust.json has. It must not go back to certificates that nobody accepts any more: it would never hear of the others.
func TestAnOlderStateIsNotFollowed(t *testing.T) {
	c := newCluster(t)
	ctx, dir := context.Background(), t.TempDir()
	a, err := c.open(dir, "c1", c.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Found(ctx, c); err != nil {
		t.Fatal(err)
	}
	c.index++ // what the others have meanwhile
	saved, now := newCluster(t), *c.store.View().Trust(nil)
	saved.key = c.key
	if err := a.Rotate(ctx, c, time.Hour); err != nil {
		t.Fatal(err)
	}
	txn := saved.store.Begin()
	txn.Entry(state.Origin{Index: 1, At: c.now()})
	txn.PutTrust(now)
	txn.Commit()
	b, err := saved.open(dir, "c1", c.key)
	if err != nil {
		t.Fatal(err)
	}
	stop, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { // ends with cancel
		defer close(done)
		b.Run(stop)
	}()
	look := func() bool { // after the record in the state was looked at
		t.Helper()
		if err := b.PutKeyring(ctx, accepting{}, b.Keyring()); err != nil {
			t.Fatal(err)
		}
		return b.Pin() == a.Pin() && meets(t, a.Live(), b.Live())
	}
	if !look() {
		t.Error("it went back to the CA of before")
	}
	saved.store.Replace(c.store) // it has heard of everything
	if !look() {
		t.Error("it does not follow the newest state")
	}
	cancel()
	<-done
}

// accepting says that everything is in the log, and forgets it.
type accepting struct{}

func (accepting) Propose(context.Context, command.Command) (command.Result, uint64, error) {
	return command.Result{}, 0, nil
}

func TestRotationsAtTheSameTime(t *testing.T) {
	c := newCluster(t)
	a := c.keeper(t.TempDir(), "c1")
	idle, err := c.open(t.TempDir(), "c2", c.key) // a former leader that has not seen the founding
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := a.Found(ctx, c); err != nil {
		t.Fatal(err)
	}
	if err := idle.Rotate(ctx, c, time.Hour); !fault.Is(err, fault.Conflict) {
		t.Errorf("from an older record: %v", err)
	}
	c.lost.Store(true)
	before := a.Pin()
	if err := a.Rotate(ctx, c, time.Hour); err == nil || a.Pin() != before {
		t.Errorf("without leadership: %v, pin changed: %v", err, a.Pin() != before)
	}
}

// TestKeyringIsSealed: the gossip keys are in the log and in trust.json, and nobody reads them there.
func TestKeyringIsSealed(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	a := c.keeper(dir, "c1")
	ctx := context.Background()
	if err := a.Found(ctx, c); err != nil {
		t.Fatal(err)
	}
	secret := strings.Repeat("S3CR3T", 5) + "=="
	if err := a.PutKeyring(ctx, c, append([]string{secret}, a.Keyring()...)); err != nil {
		t.Fatal(err)
	}
	b := c.keeper(t.TempDir(), "c2")
	eventually(t, "the other coordinator has the keys", func() bool { return len(b.Keyring()) == 2 && b.Keyring()[0] == secret })
	have := c.store.View().Trust(nil)
	file, err := os.ReadFile(filepath.Join(dir, "trust.json"))
	if err != nil {
		t.Fatal(err)
	}
	for where, data := range map[string][]byte{"the state": have.Keyring, "trust.json": file, "the CA of the state": have.Authority} {
		if bytes.Contains(data, []byte(secret)) || bytes.Contains(data, []byte("PRIVATE KEY")) {
			t.Errorf("%s tells the secret", where)
		}
	}
	// What another key sealed, or what was sealed as something else, is refused.
	saved := *have
	other := newCluster(t)
	stranger := other.keeper(t.TempDir(), "c1")
	if _, err := stranger.Restored(&saved); err == nil || !strings.Contains(err.Error(), "another cluster key") {
		t.Errorf("restored with another key: %v", err)
	}
	swapped := saved
	swapped.Keyring = saved.Authority
	if _, err := a.Restored(&swapped); err == nil {
		t.Error("the sealed CA counts as a keyring")
	}
	cut := saved
	cut.Keyring = saved.Keyring[:len(saved.Keyring)-1]
	if _, err := a.Restored(&cut); err == nil {
		t.Error("a cut keyring counts")
	}
	if got, err := a.Restored(&saved); err != nil || got == nil {
		t.Errorf("its own: %v", err)
	}
	if got, err := a.Restored(nil); err != nil || got != nil {
		t.Errorf("none: %v, %v", got, err)
	}
}

// TestDamagedRecord: whatever is wrong with trust.json, the coordinator does not start with something else.
func TestDamagedRecord(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	first := c.keeper(dir, "c1")
	if err := first.Found(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "trust.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(r *trust.Record)) []byte {
		var r trust.Record
		if err := json.Unmarshal(good, &r); err != nil {
			t.Fatal(err)
		}
		change(&r)
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	foreign := newCluster(t).keeper(t.TempDir(), "c1").Record()
	flip := func(b []byte) []byte {
		out := bytes.Clone(b)
		out[len(out)/2] ^= 1
		return out
	}
	for what, test := range map[string]struct {
		data []byte
		want string
	}{
		"empty":                           {nil, "join again"},
		"cut":                             {good[:len(good)/2], "join again"},
		"no JSON":                         {[]byte("trust"), "join again"},
		"unknown field":                   {[]byte(`{"version":1,"extra":true}`), "join again"},
		"two records":                     {slices.Concat(good, good), "join again"},
		"a later format, with more in it": {[]byte(`{"version":2,"index":"7","extra":true}`), "use the program version that wrote it"},
		"a later format":                  {changed(func(r *trust.Record) { r.Version = 9 }), "use the program version that wrote it"},
		"no bundle":                       {changed(func(r *trust.Record) { r.Bundle = "" }), "trust.json"},
		"damaged CA":                      {changed(func(r *trust.Record) { r.Authority = flip(r.Authority) }), "trust.json"},
		"damaged keyring":                 {changed(func(r *trust.Record) { r.Keyring = flip(r.Keyring) }), "trust.json"},
		"no keyring":                      {changed(func(r *trust.Record) { r.Keyring = nil }), "trust.json"},
		"another cluster's":               {changed(func(r *trust.Record) { *r = foreign }), "use the key of the cluster"},
		"another CA":                      {changed(func(r *trust.Record) { r.Authority = foreign.Authority }), "trust.json"},
	} {
		if err := os.WriteFile(path, test.data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := c.open(dir, "c1", c.key)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "trust.json") {
			t.Errorf("%s: %v", what, err)
		}
		if err != nil && strings.Contains(err.Error(), c.key.Reveal()) {
			t.Errorf("%s: the error tells the key", what)
		}
		if now, _ := os.ReadFile(path); !bytes.Equal(now, test.data) {
			t.Errorf("%s: it was overwritten", what)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.open(dir, "c1", pki.NewKey()); err == nil || !strings.Contains(err.Error(), "use the key of the cluster") {
		t.Errorf("with another key: %v", err)
	}
	if _, err := c.open(dir, "c1", c.key); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// TestClusterKeyFile: what is wrong with the file is said, with what to do, and never what is in it.
func TestClusterKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := trust.KeyPath(dir)
	if _, err := trust.ReadKey(path); !errors.Is(err, trust.ErrNoKey) || !strings.Contains(err.Error(), path) {
		t.Errorf("none: %v", err)
	}
	files, err := fsx.NewOS(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	key := pki.NewKey()
	if err := trust.WriteKey(files, dir, key); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if got, err := trust.ReadKey(path); err != nil || got.Reveal() != key.Reveal() {
		t.Errorf("read back: %v", err)
	}
	text := key.Reveal()
	for what, bad := range map[string]string{
		"empty": "", "cut": text[:63], "longer": text + "00", "no digits": strings.Repeat("z", 64), "two lines": text + "\n" + text, "binary": "\x00\x01\x02",
	} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := trust.ReadKey(path)
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "copy it from another coordinator") {
			t.Errorf("%s: %v", what, err)
		}
		if err != nil && strings.Contains(err.Error(), text[:16]) {
			t.Errorf("%s: the error tells the key: %v", what, err)
		}
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := trust.ReadKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}
