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
