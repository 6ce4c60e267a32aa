package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/credential"
	"github.com/demiurge-platform/demiurge/agent/member"
	"github.com/demiurge-platform/demiurge/agent/syncer"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

// JoinOptions say how a host joins a cluster.
type JoinOptions struct {
	Config  *Config
	Token   string   // a join token's text
	Address []string // host:port of coordinators; empty: those of the configuration
	Again   bool     // although it has joined
	Out     io.Writer
}

// Join gets the certificate of a host. A host that has joined already stays as it is, without an error.
func Join(ctx context.Context, o JoinOptions) error {
	token, err := pki.ParseJoinToken(strings.TrimSpace(o.Token))
	if err != nil {
		return err
	}
	if len(o.Address) == 0 {
		o.Address = o.Config.Coordinators
	}
	var addresses []string
	for _, a := range o.Address {
		var u *url.URL
		if u, err = syncer.ParseBase(a); err != nil {
			return err
		}
		addresses = append(addresses, u.Host)
	}
	release, err := openDataDir(o.Config)
	if err != nil {
		return err
	}
	defer release()
	files, err := fsx.NewOS(o.Config.DataDir)
	if err != nil {
		return err
	}
	defer func() { _ = files.Close() }()
	fmt.Fprintf(o.Out, "joining as host %s at %s\n", o.Config.HostID, strings.Join(addresses, ", "))
	joined, err := credential.Join(ctx, credential.JoinOptions{
		Options: credential.Options{FS: files, Dir: o.Config.DataDir, Host: id.Host(o.Config.HostID), Logger: hclog.NewNullLogger(), Now: time.Now},
		Token:   token, Addresses: addresses, Again: o.Again,
	})
	switch {
	case errors.Is(err, credential.ErrJoined):
		fmt.Fprintf(o.Out, "already joined: the certificate of %s; the token was not used (--again replaces the certificate)\n", joined.Credentials)
		return nil
	case err != nil:
		return err
	}
	if c := joined.Cluster; c.GossipKey != "" {
		access := api.GossipAccess{Addresses: c.SerfAddresses, Keys: []string{c.GossipKey}}
		if err := member.Keep(files, memberDir(o.Config), access); err != nil {
			return fmt.Errorf("joined, but %w; the agent learns it again from a coordinator", err)
		}
	}
	fmt.Fprintf(o.Out, "joined: %s\n", joined.Credentials)
	return nil
}
