package agent

import (
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
)

func TestWhatOnlyCountsIsReportedLessOften(t *testing.T) {
	base := func() api.HostReport {
		return api.HostReport{Address: "a", Capacity: 1, Nginx: api.NginxStatus{
			State: api.NginxServing, LiveGeneration: 3, Routes: 7, Quarantined: []api.QuarantinedPart{{Part: "p"}},
		}}
	}
	for _, tt := range []struct {
		name   string
		change func(r *api.HostReport)
		soon   bool
		later  bool
	}{
		{"nothing", func(*api.HostReport) {}, false, false},
		{"routes", func(r *api.HostReport) { r.Nginx.Routes++ }, false, true},
		{"draining workers", func(r *api.HostReport) { r.Nginx.DrainingWorkers++ }, false, true},
		{"state", func(r *api.HostReport) { r.Nginx.State = api.NginxDown }, true, true},
		{"generation", func(r *api.HostReport) { r.Nginx.LiveGeneration++ }, true, true},
		{"quarantine", func(r *api.HostReport) { r.Nginx.Quarantined = nil }, true, true},
		{"quarantine and routes", func(r *api.HostReport) { r.Nginx.Quarantined[0].Part = "q"; r.Nginx.Routes++ }, true, true},
		{"capacity", func(r *api.HostReport) { r.Capacity++ }, true, true},
	} {
		last, now := base(), base()
		tt.change(&now)
		if got := due(last, now, time.Second); got != tt.soon {
			t.Errorf("%s after a second: %v", tt.name, got)
		}
		if got := due(last, now, 3*time.Second); got != tt.later {
			t.Errorf("%s after three seconds: %v", tt.name, got)
		}
	}
}

// A host that has just told of a new generation tells at once of the first route in it.
func TestOnlyCountsHoldCountsBack(t *testing.T) {
	var s said
	now := time.Unix(1000, 0)
	r := api.HostReport{Nginx: api.NginxStatus{LiveGeneration: 1}}
	for i, step := range []struct {
		after  time.Duration
		change func()
		sent   bool
	}{
		{0, func() {}, true},
		{time.Second, func() { r.Nginx.LiveGeneration++ }, true},
		{time.Millisecond, func() { r.Nginx.Routes++ }, true},
		{time.Millisecond, func() { r.Nginx.Routes++ }, false},
		{time.Second, func() { r.Nginx.LiveGeneration++ }, true},
		{time.Millisecond, func() { r.Nginx.Routes++ }, false},
		{hostCount, func() {}, true},
		{hostCount, func() {}, false},
	} {
		now = now.Add(step.after)
		step.change()
		if got := s.take(r, now); got != step.sent {
			t.Errorf("step %d: %v", i, got)
		}
	}
}
