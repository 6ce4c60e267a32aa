package credential_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/credential"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

func options(t *testing.T, dir string) credential.Options {
	t.Helper()
	files, err := fsx.NewOS(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	return credential.Options{FS: files, Dir: dir, Host: "host-1", Logger: hclog.NewNullLogger(), Now: time.Now}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	trust := agenttest.NewTrust(t)
	for what, c := range map[string]struct {
		join func(dir string)
		host id.Host
		now  time.Duration
		want string
	}{
		"not joined":     {func(string) {}, "host-1", 0, "demiurge-agent join --token"},
		"another host's": {func(dir string) { trust.Join(t, dir, "host-2", time.Now()) }, "host-1", 0, "correct host_id"},
		"expired":        {func(dir string) { trust.Join(t, dir, "host-1", time.Now()) }, "host-1", pki.DefaultLeafLife, "has expired"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			c.join(dir)
			o := options(t, dir)
			o.Host, o.Now = c.host, func() time.Time { return time.Now().Add(c.now) }
			if _, err := credential.Open(o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

// renewer answers after some failures.
type renewer struct {
	trust *agenttest.Trust

	mu    sync.Mutex
	fails int // guarded by mu
	asked int // guarded by mu
}

func (r *renewer) RenewCertificate(_ context.Context, in api.JoinRequest) (api.JoinAnswer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if r.asked <= r.fails {
		return api.JoinAnswer{}, errors.New("no coordinator answers")
	}
	return r.trust.Answer(in, time.Now())
}

// TestTheCertificateIsRenewedInTime: after failures too, and it is on disk before it is used.
func TestTheCertificateIsRenewedInTime(t *testing.T) {
	trust := agenttest.NewTrust(t)
	dir := t.TempDir()
	trust.Join(t, dir, "host-1", time.Now().Add(-pki.DefaultLeafLife*9/10)) // it is due
	k, err := credential.Open(options(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	old := k.Current()
	changed := k.Changed()
	r := &renewer{trust: trust, fails: 1}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		k.Run(ctx, r)
	}()
	agenttest.Wait(t, "a new certificate", func() bool {
		select {
		case <-changed:
			return true
		default:
			return false
		}
	})
	cancel()
	<-done
	if k.Current().Equal(old) || !k.Current().Expires().After(old.Expires()) {
		t.Error("the certificate is the old one")
	}
	if r.asked != 2 {
		t.Errorf("asked %d times", r.asked)
	}
	o := options(t, dir)
	again, err := credential.Open(o)
	if err != nil || !again.Current().Equal(k.Current()) {
		t.Errorf("on disk is another one: %v", err)
	}
	if _, err := again.TLS(); err != nil {
		t.Error(err)
	}
}

func TestJoinedIsJoined(t *testing.T) {
	trust := agenttest.NewTrust(t)
	dir := t.TempDir()
	trust.Join(t, dir, "host-1", time.Now())
	o := credential.JoinOptions{Options: options(t, dir), Token: pki.NewJoinToken(trust.Pin()), Addresses: []string{"127.0.0.1:1"}}
	joined, err := credential.Join(t.Context(), o)
	if !errors.Is(err, credential.ErrJoined) || joined.Credentials.Identity().Name() != "host-1" {
		t.Errorf("%v, %v", joined, err)
	}
	o.Again = true
	if _, err := credential.Join(t.Context(), o); err == nil || errors.Is(err, credential.ErrJoined) {
		t.Errorf("nobody was asked: %v", err)
	}
	o.Again, o.Host = false, "host-2"
	if _, err := credential.Join(t.Context(), o); err == nil || !strings.Contains(err.Error(), "correct host_id") {
		t.Errorf("%v", err)
	}
	o.Options = options(t, t.TempDir())
	if _, err := credential.Join(t.Context(), o); err == nil || !strings.Contains(err.Error(), "cannot join at 127.0.0.1:1") {
		t.Errorf("%v", err)
	}
}

// A rotation of the CA is over long before a certificate is due by its age: agents are told, and renew theirs in time.
func TestARotationOfTheCAMakesTheCertificateDue(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir)
	synctest.Test(t, func(t *testing.T) {
		const overlap = time.Hour
		trust := agenttest.NewTrust(t)
		trust.Join(t, dir, "host-1", time.Now())
		k, err := credential.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		joined, before := k.Current(), trust.Bundle().PEM()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		r := &renewer{trust: trust}
		go func() { // waited for below
			defer close(done)
			k.Run(ctx, r)
		}()
		defer func() { cancel(); <-done }()

		changed := k.Changed()
		k.Trust(before) // nothing new
		k.Trust("no bundle")
		select {
		case <-changed:
			t.Error("something was taken over")
		default:
		}
		trust.Rotate(t, overlap)
		k.Trust(trust.Bundle().PEM())
		if !k.Current().Bundle().Equal(trust.Bundle()) {
			t.Error("the new CA is not trusted")
		}
		if again, err := credential.Open(o); err != nil || !again.Current().Equal(k.Current()) {
			t.Errorf("not on the disk: %v", err)
		}
		k.Trust(before) // of a coordinator that is behind
		if !k.Current().Bundle().Equal(trust.Bundle()) {
			t.Error("the new CA was taken back")
		}
		time.Sleep(overlap / 2)
		synctest.Wait()
		if got := k.Current(); got.Leaf().Equal(joined.Leaf()) || time.Until(got.RenewAt()) < pki.DefaultLeafLife/2 || r.asked != 1 {
			t.Errorf("after half of the overlap, asked %d times: %s", r.asked, got)
		}
	})
}
