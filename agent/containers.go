package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/demiurge-platform/demiurge/agent/container"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/fsx"
)

// ContainersConfig is about the user containers of every organization on this host.
type ContainersConfig struct {
	Networks        []string      `yaml:"networks"`         // that containers may be in; empty: none is reached from here
	Limit           int           `yaml:"limit"`            // containers of one organization
	TokenLifetime   time.Duration `yaml:"token_lifetime"`   // of a hosting token
	SessionLifetime time.Duration `yaml:"session_lifetime"` // of a person's session at one container
	Patience        time.Duration `yaml:"patience"`         // with a heartbeat that stays away
}

func defaultContainers() ContainersConfig {
	return ContainersConfig{
		Limit: container.DefaultLimits().Containers, TokenLifetime: time.Hour, SessionLifetime: 8 * time.Hour, Patience: 30 * time.Second,
	}
}

// validate checks what the types cannot.
func (k ContainersConfig) validate() error {
	var errs []error
	bad := func(key, message, remedy string) {
		errs = append(errs, config.Invalid("containers."+key, message, remedy))
	}
	if _, err := prefixes(k.Networks); err != nil {
		bad("networks", err.Error(), "set networks such as 172.18.0.0/16")
	}
	if k.Limit < 1 || k.Limit > 10_000 {
		bad("limit", fmt.Sprintf("%d is not between 1 and 10000", k.Limit), "leave it out for the default of 200")
	}
	for key, d := range map[string]time.Duration{"token_lifetime": k.TokenLifetime, "session_lifetime": k.SessionLifetime} {
		if d < time.Minute || d > 31*24*time.Hour {
			bad(key, fmt.Sprintf("%s is not between 1m and 744h", d), "leave it out for the default")
		}
	}
	if k.Patience < 3*time.Second || k.Patience > time.Hour {
		bad("patience", fmt.Sprintf("%s is not between 3s and 1h", k.Patience), "leave it out for the default of 30s")
	}
	return errors.Join(errs...)
}

// openContainers takes up the user containers of organizations.
func openContainers(c *Config, files fsx.FS, now func() time.Time, log hclog.Logger) (*container.Organizations, error) {
	dir := layoutOf(c).containers
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make %s: %w; make it writable for this agent's user", dir, err)
	}
	networks, err := prefixes(c.Containers.Networks)
	if err != nil {
		return nil, err
	}
	limits := container.DefaultLimits()
	limits.Containers = c.Containers.Limit
	reached := c.public()
	return container.New(container.Options{
		Dir: dir, FS: files, Domain: c.Domain, Scheme: reached.Scheme, Port: reached.Port, Networks: networks, Own: ownAddresses,
		Limits: limits, TokenLife: c.Containers.TokenLifetime, SessionLife: c.Containers.SessionLifetime, Patience: c.Containers.Patience,
		Now: now, Logger: log,
	})
}

// ownAddresses are those of this host.
func ownAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			return nil, err
		}
		out = append(out, p.Addr().Unmap())
	}
	return out, nil
}

// accessSocket is where nginx asks about requests to user containers.
func accessSocket(c *Config) string { return filepath.Join(c.RunDir, "access.sock") }

// passSocket is where nginx brings requests to user containers that the agent carries or answers.
func passSocket(c *Config) string { return filepath.Join(c.RunDir, "pass.sock") }

// listenPrivate listens on a socket for nginx. The directory belongs to this agent alone, so what is there is a
// dead one's.
func listenPrivate(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot remove the socket of an earlier agent: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for nginx's questions: %w; is the run directory writable?", err)
	}
	if err := os.Chmod(path, 0o660); err != nil { // nginx connects as another user of the group
		return nil, errors.Join(fmt.Errorf("cannot let nginx's group use %s: %w", path, err), l.Close())
	}
	return l, nil
}

// serveAccess answers nginx's questions about requests to user containers until ctx ends.
func serveAccess(ctx context.Context, l net.Listener, door http.Handler) error {
	s := &http.Server{
		Handler: door, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 64 << 10,
		IdleTimeout: 2 * time.Minute, // longer than nginx keeps a connection, so that nginx is the one to close it
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }() // received below
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	_ = s.Close()
	<-done
	return nil
}

// containerMetrics are read when Prometheus asks.
type containerMetrics struct{ stats func() container.Stats }

// Describe implements prometheus.Collector. It describes nothing: what is read is checked when it is collected.
func (containerMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m containerMetrics) Collect(out chan<- prometheus.Metric) {
	s := m.stats()
	states := description("containers", "User containers by state.", "state")
	for _, state := range container.States() {
		out <- prometheus.MustNewConstMetric(states, prometheus.GaugeValue, float64(s.States[state]), state.String())
	}
	requests := description("container_requests_total", "Requests to user containers by what was decided.", "answer")
	for _, a := range container.Answers() {
		out <- prometheus.MustNewConstMetric(requests, prometheus.CounterValue, float64(s.Access[a]), a.String())
	}
	count := func(name, help string, n uint64) {
		out <- prometheus.MustNewConstMetric(description(name, help), prometheus.CounterValue, float64(n))
	}
	out <- prometheus.MustNewConstMetric(description("container_requests_open", "Requests to user containers that are on their way now, open WebSockets among them."), prometheus.GaugeValue, float64(s.Open))
	count("container_requests_ended_total", "Open requests to user containers that were ended because they would have been refused.", s.Ended)
	count("containers_created_total", "User containers that were made.", s.Created)
	count("containers_deleted_total", "User containers that were ended, those included that could not be made.", s.Deleted)
	count("container_downs_total", "User containers whose heartbeat stayed away too long.", s.Downs)
}
