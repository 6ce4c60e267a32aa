package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/demiurge-platform/demiurge/coordinator/consensus"
	"github.com/demiurge-platform/demiurge/coordinator/trust"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// Keygen makes the key of a new cluster, as the coordinators' key files hold it.
func Keygen() string { return pki.NewKey().Reveal() }

// JoinOptions say how a coordinator joins a cluster.
type JoinOptions struct {
	Config  *Config
	Token   string   // a join token's text
	Address []string // host:port of the API of coordinators
	Again   bool     // although it has the key of the cluster: it lacks the certificates of now
	Out     io.Writer
}

// Join gets the secrets of a cluster for a coordinator that has none: the cluster key and the record of its
// CAs and gossip keys. One that has a key stays as it is, without an error, unless it is to join again: then it gets the
// record anew, and keeps everything else.
func Join(ctx context.Context, o JoinOptions) error {
	cfg := o.Config
	token, err := pki.ParseJoinToken(strings.TrimSpace(o.Token))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("cannot make the data directory: %w; make it writable for this user, or set another data_dir", err)
	}
	path := cmp.Or(cfg.Cluster.KeyFile, trust.KeyPath(cfg.DataDir))
	own, err := trust.ReadKey(path)
	switch {
	case err == nil && !o.Again:
		fmt.Fprintf(o.Out, "already joined: %s is there; the token was not used (--again gets the certificates of the cluster anew)\n", path)
		return nil
	case err != nil && !errors.Is(err, trust.ErrNoKey):
		return err
	case err != nil && cfg.Cluster.KeyFile != "":
		return fmt.Errorf("cannot join: cluster.key_file is set to %s, so somebody else puts the cluster key there; leave it out", cfg.Cluster.KeyFile)
	}
	joinedBefore := err == nil
	if joinedBefore { // one that runs would go on with the certificates of before, and write them over those of now
		release, err := consensus.Hold(filepath.Join(cfg.DataDir, "raft"))
		if err != nil {
			return fmt.Errorf("cannot join again: %w", err)
		}
		defer func() { _ = release() }()
	}
	files, err := fsx.NewOS(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { _ = files.Close() }()
	// A coordinator issues its own certificate: the one that it gets here only proves that it was let in.
	dir := filepath.Join(cfg.DataDir, "joining")
	defer func() { _ = os.RemoveAll(dir) }()
	store, err := pki.OpenStore(files, dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "joining as coordinator %s at %s\n", cfg.NodeID, strings.Join(o.Address, ", "))
	joined, err := pki.Join(ctx, pki.JoinOptions{Addresses: o.Address, Token: token, Role: pki.RoleCoordinator, Name: cfg.NodeID, Store: store})
	if err != nil {
		return err
	}
	if joinedBefore {
		if err := keepAgain(files, cfg.DataDir, joined, own); err != nil {
			return err
		}
		fmt.Fprintf(o.Out, "joined cluster %s again; start the coordinator\n", joined.Cluster.ClusterID)
		return nil
	}
	if err := keep(files, cfg.DataDir, joined); err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "joined cluster %s; set cluster.bootstrap_expect to 0 and cluster.join to [%s], and start the coordinator\n",
		joined.Cluster.ClusterID, strings.Join(joined.Cluster.SerfAddresses, ", "))
	return nil
}

// keepAgain writes the record of a cluster whose key is there.
func keepAgain(files fsx.FS, dir string, joined *pki.Joined, own pki.Key) error {
	key, err := pki.ParseKey(joined.Cluster.ClusterKey)
	if err != nil {
		return fmt.Errorf("cannot use the cluster key in the answer: %w", err)
	}
	if key.Reveal() != own.Reveal() {
		return fmt.Errorf("cannot join again: this coordinator has the key of another cluster than %s; to let it join that one, empty its data directory %s first", joined.Cluster.ClusterID, dir)
	}
	record, err := trust.ParseRecord(joined.Cluster.Trust)
	if err != nil {
		return err
	}
	return trust.WriteRecord(files, dir, record)
}

// keep writes the key last: it is what says that a coordinator has joined.
func keep(files fsx.FS, dir string, joined *pki.Joined) error {
	key, err := pki.ParseKey(joined.Cluster.ClusterKey)
	if err != nil {
		return fmt.Errorf("cannot use the cluster key in the answer: %w", err)
	}
	record, err := trust.ParseRecord(joined.Cluster.Trust)
	if err != nil {
		return err
	}
	if err := trust.WriteRecord(files, dir, record); err != nil {
		return err
	}
	return trust.WriteKey(files, dir, key)
}
