package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// identity is who must answer on an organization's host name.
type identity struct {
	organization id.Organization
	gateway      id.Gateway
	epoch        id.Epoch
	bootID       string // of the process; empty: any
}

func (a *actor) identity() identity {
	g := a.ob.Grant
	return identity{organization: g.Organization, gateway: a.id, epoch: g.Epoch, bootID: a.bootID}
}

// pingPath is what every gateway answers with its identity.
const pingPath = "/collab/ping"

// verify asks nginx for the organization as a client would and accepts only an answer that carries the
// identity, in its headers and in its body. A 200 of anything else is a failure.
func verify(ctx context.Context, nginx Nginx, timeout time.Duration, want identity) error {
	vctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := ask(vctx, nginx, want.organization)
	if err != nil {
		return fault.Wrap(fault.VerifyFailed, err, "nginx does not answer for the organization: %v", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := sameIdentity(resp, want); err != nil {
		return fault.New(fault.VerifyFailed, "the answer on the organization's host name is not its gateway's: %v", err)
	}
	return nil
}

// ask asks nginx for the organization. nginx follows the route on every request, so the first answer counts;
// only a connection that a reload has closed is tried again.
func ask(ctx context.Context, nginx Nginx, org id.Organization) (resp *http.Response, err error) {
	for range 3 {
		resp, err = nginx.Get(ctx, org, pingPath)
		if err == nil || ctx.Err() != nil || errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	return resp, err
}

// sameIdentity says what of an answer differs from the identity that is wanted.
func sameIdentity(resp *http.Response, want identity) error {
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the status is %d", resp.StatusCode)
	}
	if got := resp.Header.Values(api.HeaderGateway); len(got) != 1 || got[0] != string(want.gateway) {
		return fmt.Errorf("the header %s is %s, not %s", api.HeaderGateway, clip(fmt.Sprintf("%q", got)), want.gateway)
	}
	if got := resp.Header.Values(api.HeaderEpoch); len(got) != 1 || got[0] != want.epoch.String() {
		return fmt.Errorf("the header %s is %s, not %s", api.HeaderEpoch, clip(fmt.Sprintf("%q", got)), want.epoch)
	}
	const most = 64 << 10
	body, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return fmt.Errorf("the body cannot be read: %w", err)
	}
	var h api.GatewayHealth
	if err := json.Unmarshal(body, &h); err != nil {
		return fmt.Errorf("the body is not a gateway's: %w", err)
	}
	switch {
	case h.GatewayID != string(want.gateway):
		return fmt.Errorf("the body names gateway %.80q, not %s", h.GatewayID, want.gateway)
	case h.Epoch != uint64(want.epoch):
		return fmt.Errorf("the body names epoch %s, not %s", strconv.FormatUint(h.Epoch, 10), want.epoch)
	case h.OrganizationID != string(want.organization):
		return fmt.Errorf("the body names organization %.80q, not %s", h.OrganizationID, want.organization)
	case want.bootID != "" && h.BootID != want.bootID:
		return fmt.Errorf("the body names boot id %.80q, not %q", h.BootID, want.bootID)
	}
	return nil
}

// answerVerify verifies again on the coordinator's question, and says so with its nonce.
func (a *actor) answerVerify(ctx context.Context) {
	r := a.asked[0]
	a.asked = a.asked[1:]
	begun := a.o.Now().UTC()
	g := a.ob.Grant
	var err error
	switch {
	case g == nil || string(g.Organization) != r.OrganizationID || uint64(g.Epoch) != r.Epoch:
		err = fault.New(fault.VerifyFailed, "gateway %s does not hold organization %s at epoch %d", a.id, r.OrganizationID, r.Epoch)
	case phase(a.w, a.ob, a.o.Timing.FailedStarts) != api.PhaseServing:
		err = fault.New(fault.VerifyFailed, "gateway %s is being brought back: %s", a.id, a.ob.Message)
	default:
		err = verify(ctx, a.o.Nginx, a.o.Timing.VerifyTimeout, a.identity())
		if err != nil && ctx.Err() == nil {
			a.logger.Warn("a served organization does not verify", "organization", g.Organization, "error", err)
			a.bringBack()
			a.ob.Message = clip(fault.From(err).Message)
		}
	}
	if ctx.Err() != nil {
		return
	}
	end := a.o.Now().UTC()
	s := api.Step{Step: api.StepVerify, State: api.StepDone, StartedAt: begun, EndedAt: &end}
	if err != nil {
		f := fault.From(err)
		s.State, s.Error, s.Code = api.StepFailed, f.Message, string(f.Code)
	}
	report := api.StepReport{GatewayID: string(a.id), Epoch: r.Epoch, Nonce: r.Nonce, Step: s}
	if g != nil {
		report.AllocationID = string(g.Allocation)
	}
	a.o.Sink.Observe(api.Observation{Steps: []api.StepReport{report}})
}
