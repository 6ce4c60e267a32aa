package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

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
	Out     io.Writer
}

// Join gets the secrets of a cluster for a coordinator that has none: the cluster key and the record of its
// CAs and gossip keys. One that has a key stays as it is, without an error.
func Join(ctx context.Context, o JoinOptions) error {
	cfg := o.Config
	token, err := pki.ParseJoinToken(strings.TrimSpace(o.Token))
	if err != nil {
		return err
	}
	if cfg.Cluster.KeyFile != "" {
		return fmt.Errorf("cannot join: cluster.key_file is set to %s, so somebody else puts the cluster key there; leave it out", cfg.Cluster.KeyFile)
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("cannot make the data directory: %w; make it writable for this user, or set another data_dir", err)
	}
	switch _, err := trust.ReadKey(trust.KeyPath(cfg.DataDir)); {
	case err == nil:
		fmt.Fprintf(o.Out, "already joined: %s is there; the token was not used\n", trust.KeyPath(cfg.DataDir))
		return nil
	case !errors.Is(err, trust.ErrNoKey):
		return err
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
	if err := keep(files, cfg.DataDir, joined); err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "joined cluster %s; set cluster.bootstrap_expect to 0 and cluster.join to [%s], and start the coordinator\n",
		joined.Cluster.ClusterID, strings.Join(joined.Cluster.SerfAddresses, ", "))
	return nil
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
