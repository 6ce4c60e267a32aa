package container

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Answer is what becomes of a request to a container.
type Answer uint8

// The answers. What is not Passed reaches no container.
const (
	Passed    Answer = iota + 1
	Anonymous        // nobody is known to be behind it
	Missing          // there is no such container or service
	Away             // it is down
	Refused          // the person or program may not
)

// String is the answer's name in metrics.
func (a Answer) String() string {
	switch a {
	case Passed:
		return "passed"
	case Anonymous:
		return "anonymous"
	case Missing:
		return "missing"
	case Away:
		return "away"
	case Refused:
		return "refused"
	}
	return fmt.Sprintf("answer %d", uint8(a))
}

// Answers lists all answers.
func Answers() []Answer { return []Answer{Passed, Anonymous, Missing, Away, Refused} }

// Decision is an answer with its reason and, for one that passed, where the request goes and whose it is.
type Decision struct {
	Answer   Answer
	Reason   string // for the log and for the caller
	Upstream netip.AddrPort
	User     id.User
	Username string
	Project  id.Project
	Service  ServiceName
	Client   string // that an access token was given to; empty: a person's session
}

// Caller is who a request is from. The zero Caller is nobody.
type Caller struct {
	Subject  permission.Subject
	Username string
	Client   string // that the access token was given to
	Ambient  bool   // a browser adds its credential to every request, whoever caused it
}

// Asked is a request as far as the decision needs it. The zero Asked is one that a program made.
type Asked struct {
	Service ServiceName
	Method  string
	Upgrade bool
	Own     string // origin of the container's name: https://uc-…
	Origin  string // that the request says it comes from
	Site    string // Sec-Fetch-Site
}

// target is a container as it is at the moment of a decision; nil: there is none.
type target struct {
	*record
	up bool
}

// decide is the whole access check: whether this caller's request may reach this container under this policy,
// and where it goes. It has no clock and asks nobody.
func decide(p *permission.Policy, who Caller, t *target, ask Asked) Decision {
	if who.Subject.User == "" {
		return Decision{Answer: Anonymous, Reason: "nobody is logged in"}
	}
	if t == nil || !t.good() {
		return Decision{Answer: Missing, Reason: "there is no such container"}
	}
	service, ok := t.service(ask.Service)
	if !ok {
		return Decision{Answer: Missing, Reason: fmt.Sprintf("container %s has no service %s", t.ID, ask.Service)}
	}
	subject := who.Subject
	if slices.ContainsFunc(t.Services, func(k kept) bool { return who.Client != "" && k.Client == who.Client }) {
		subject.Limit = append(slices.Clone(subject.Limit), accessOnly) // it is for this very container
	}
	at := permission.Resource{Organization: p.Organization(), Project: t.Project}
	if d := p.Check(subject, CanAccess, at); !d.Allowed {
		return Decision{Answer: Refused, Reason: d.Reason}
	}
	if who.Ambient && ask.foreign() {
		return Decision{Answer: Refused, Reason: "another site caused the request"}
	}
	port := uint16(0)
	if t.up && t.Place != nil {
		port = t.Place.Ports[service.Name]
	}
	if port == 0 {
		return Decision{Answer: Away, Reason: fmt.Sprintf("container %s does not serve %s at the moment", t.ID, service.Name)}
	}
	return Decision{
		Answer: Passed, Upstream: netip.AddrPortFrom(t.Place.Address, port), User: who.Subject.User, Username: who.Username,
		Project: t.Project, Service: service.Name, Client: who.Client,
	}
}

var accessOnly = mustPattern(permission.ParsePattern("container:access"))

func mustPattern(p permission.Pattern, err error) permission.Pattern {
	if err != nil {
		panic(err)
	}
	return p
}

// foreign reports whether a page of another host made a browser send what can change something. All names of
// an organization are one site to browsers, so their cookies go along.
func (a *Asked) foreign() bool {
	if !a.Upgrade && (a.Method == http.MethodGet || a.Method == http.MethodHead || a.Method == http.MethodOptions) {
		return false
	}
	if a.Origin != "" {
		return a.Origin != a.Own
	}
	return a.Site != "" && a.Site != "same-origin" && a.Site != "none"
}

// target finds a container for a decision.
func (r *Registry) target(c ID) *target {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e := r.containers[c]; e != nil && !r.closed {
		return &target{e.record, e.beating(r.opts.Now())}
	}
	return nil
}

// Access decides about a request to a container. Every answer is counted.
func (r *Registry) Access(c ID, who Caller, ask Asked) Decision {
	d := decide(r.people.Policy(), who, r.target(c), ask)
	r.count(d.Answer)
	return d
}

func (r *Registry) count(a Answer) { r.host.access[a].Add(1) }

// Err is the decision as an error, for those who answer with one; nil when it passed.
func (d Decision) Err() error {
	switch d.Answer {
	case Passed:
		return nil
	case Anonymous:
		return fault.New(fault.Unauthenticated, "cannot reach the container: %s", d.Reason)
	case Missing:
		return fault.New(fault.NotFound, "cannot reach the container: %s", d.Reason)
	case Away:
		return fault.New(fault.HostLost, "cannot reach the container: %s; try again when it is back", d.Reason)
	}
	return fault.New(fault.Forbidden, "cannot reach the container: %s", d.Reason)
}
