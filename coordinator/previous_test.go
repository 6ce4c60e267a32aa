package coordinator_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator"
	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// previous is what the programs of an earlier commit left and said; testdata/previous/make wrote it.
type previous struct {
	dir           string
	organizations []api.Organization
	allocations   []api.Allocation
	tokens        []api.Token
	reader        string // secret of a token that was valid
	revoked       string // and of one that was revoked
}

func readPrevious(t *testing.T, dir string) previous {
	t.Helper()
	p := previous{dir: dir}
	for name, into := range map[string]any{"org": &p.organizations, "alloc": &p.allocations, "token": &p.tokens} {
		data, err := os.ReadFile(filepath.Join(dir, name+".json"))
		if err == nil {
			err = json.Unmarshal(data, &struct {
				Items any `json:"items"`
			}{into})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, into := range map[string]*string{"reader": &p.reader, "revoked": &p.revoked} {
		data, err := os.ReadFile(filepath.Join(dir, name+".token"))
		if err != nil {
			t.Fatal(err)
		}
		*into = strings.TrimSpace(string(data))
	}
	if len(p.organizations) < 3 || len(p.allocations) < 2 || len(p.tokens) < 2 {
		t.Fatalf("%s has %d organizations, %d allocations, %d tokens", dir, len(p.organizations), len(p.allocations), len(p.tokens))
	}
	return p
}

// unpack gives the data directory.
func (p previous) unpack(t *testing.T) string {
	t.Helper()
	file, err := os.Open(filepath.Join(p.dir, "data.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	snapshots := 0
	for in := tar.NewReader(unzipped); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(to, filepath.FromSlash(h.Name))
		if filepath.Base(path) == "state.bin" {
			snapshots++
		}
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o700)
		} else {
			var data []byte
			if data, err = io.ReadAll(in); err == nil {
				err = os.WriteFile(path, data, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if snapshots == 0 {
		t.Errorf("%s has no snapshot", p.dir)
	}
	return to
}

// TestDataOfPreviousVersions: a coordinator that starts on the data of an earlier version knows all that that one
// knew, whether it was in a snapshot or in the log, goes on from there, and starts again on what it wrote itself.
func TestDataOfPreviousVersions(t *testing.T) {
	dirs, err := filepath.Glob("testdata/previous/*/data.tar.gz")
	if err != nil || len(dirs) < 2 {
		t.Fatalf("%d fixtures, %v", len(dirs), err)
	}
	for _, file := range dirs {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			t.Parallel()
			p := readPrevious(t, filepath.Dir(file))
			c := coordtest.Start(t, func(cfg *coordinator.Config) {
				cfg.NodeID, cfg.DataDir, cfg.Domain = "coordinator-1", p.unpack(t), "dev.localhost"
			})
			p.check(t, c)
			added := c.Organizations(1)[0]
			c.Restart()
			p.check(t, c)
			if _, err := c.Admin.Organization(within(t), added); err != nil {
				t.Errorf("what was written on top of it: %v", err)
			}
		})
	}
}

// check compares what a coordinator knows with what its predecessor said.
func (p previous) check(t *testing.T, c *coordtest.Cluster) {
	t.Helper()
	ctx := within(t)
	same := func(what string, got, want any, err error) {
		t.Helper()
		if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); err != nil || g != w {
			t.Errorf("%s: %v\ngot  %s\nwant %s", what, err, g, w)
		}
	}
	for _, want := range p.organizations {
		got, err := c.Admin.Organization(ctx, want.OrganizationID)
		got.Index, want.Index = 0, 0
		same("organization", got, want, err)
	}
	live := 0
	for _, want := range p.allocations {
		got, err := c.Admin.Allocation(ctx, want.AllocationID)
		type kept struct {
			organization, gateway, host, hostname string
			epoch                                 uint64
			created, ended                        string
		}
		of := func(a api.Allocation) kept {
			return kept{a.OrganizationID, a.GatewayID, a.HostID, a.Hostname, a.Epoch, a.CreatedAt.String(), fmt.Sprint(a.EndedAt)}
		}
		if got.State == api.AllocationRelocating { // its host is not here any more
			got.GatewayID, got.HostID, got.Epoch = want.GatewayID, want.HostID, want.Epoch
		}
		same("allocation "+want.AllocationID, of(got), of(want), err)
		if want.EndedAt == nil {
			live++
			now, err := c.Admin.OrganizationAllocation(ctx, want.OrganizationID)
			same("the organization's allocation", now.AllocationID, want.AllocationID, err)
		}
	}
	if live < 2 {
		t.Errorf("%d allocations were live", live)
	}
	tokens, err := c.Admin.ListTokens(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range tokens {
		tokens[i].Index = 0
	}
	for i := range p.tokens {
		p.tokens[i].Index = 0
	}
	same("tokens", tokens, p.tokens, nil)
	p.secrets(ctx, t, c)
}

// secrets: who had a token has it still, with its role, and who had lost it has not got it back.
func (p previous) secrets(ctx context.Context, t *testing.T, c *coordtest.Cluster) {
	t.Helper()
	as := func(secret string) *client.Client {
		out, err := client.New(client.Options{Addresses: []string{c.URL}, Token: secret})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if _, err := as(p.reader).ListHosts(ctx); err != nil {
		t.Errorf("the reader: %v", err)
	}
	if _, err := as(p.reader).ListTokens(ctx); !fault.Is(err, fault.Forbidden) {
		t.Errorf("the reader among the tokens: %v", err)
	}
	if _, err := as(p.revoked).ListHosts(ctx); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("the revoked token: %v", err)
	}
}
