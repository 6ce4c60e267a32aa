package coordinator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/demiurge-platform/demiurge/coordinator/command"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// adminTokenFile is where the first leader of a new cluster leaves the first token.
const adminTokenFile = "admin.token"

// initialize names a new cluster and gives it its first token. The secret stands in a file of the data
// directory that only its owner can read; in the log is its hash. The file is written first: a token
// whose secret nobody has would lock everybody out.
func (c *Coordinator) initialize(ctx context.Context) error {
	if err := c.trust.Found(ctx, c.propose); err != nil {
		return fmt.Errorf("cannot keep the cluster's certificates: %w", err)
	}
	if c.store.View().Cluster() != "" {
		return nil
	}
	path := filepath.Join(c.opts.Config.DataDir, adminTokenFile)
	secret, err := readOrMakeSecret(path)
	if err != nil {
		return fmt.Errorf("cannot keep the first admin token: %w", err)
	}
	hash := sha256.Sum256([]byte(secret))
	meta := command.Meta{At: c.opts.Now(), Actor: "bootstrap"}
	result, _, err := c.propose.Propose(ctx, command.PutToken{
		Meta: meta, Token: id.NewToken(), Role: api.RoleAdmin, Name: "first", Hash: hex.EncodeToString(hash[:]),
	})
	if err != nil {
		return err
	}
	if result.Err != nil {
		return result.Err
	}
	if _, _, err = c.propose.Propose(ctx, command.InitCluster{Meta: meta, ClusterID: c.trust.Cluster()}); err != nil {
		return err
	}
	c.log.Info("a new cluster; the first admin token is in a file", "file", path)
	return nil
}

// readOrMakeSecret returns the secret in the file, or makes one that is on disk before it is used.
func readOrMakeSecret(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err == nil {
		secret, err := parseSecret(data)
		if err != nil {
			return "", fmt.Errorf("cannot use %s: %w", path, err)
		}
		return secret, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	files, err := fsx.NewOS(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	secret := id.Secret()
	err = fsx.WriteAtomic(files, "coordinator.token", path, []byte(secret+"\n"), 0o600) // whole, or not there
	return secret, errors.Join(err, files.Close())
}

// parseSecret reads the file of the first admin token. What id.Secret would not have made may be known to others, or cut
// short: it opens nothing. The error does not repeat it.
func parseSecret(data []byte) (string, error) {
	secret := strings.TrimSuffix(string(data), "\n")
	if raw, err := hex.DecodeString(secret); err != nil || hex.EncodeToString(raw) != secret || len(raw) != 32 {
		return "", fmt.Errorf("it has %d bytes and is no token of 64 lower-case hexadecimal digits; remove the file and start the coordinator again, which makes another token", len(data))
	}
	return secret, nil
}
