// Package container keeps the user containers of organizations: programs that members run elsewhere and
// that are reached through nginx as uc-<id>.org-<uuid>.<domain>. It makes and ends them in steps with undo
// (Registry.Create, Delete), gives them hosting tokens, follows their heartbeats, and decides for every
// single request whether it may pass, and where to (Decide).
//
// A Registry holds what one organization has; Organizations holds the registries of a host, their journals
// and the loops that serve all of them; a Door answers nginx. What a person may do, which OAuth clients there
// are and who is logged in is asked through interfaces (Clients, People). DESIGN.md says why things are as
// they are.
package container

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/demiurge-platform/demiurge/agent/keyed"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// ID names a container: 16 characters of [a-z2-7]. It stands in host names, so it is one part of a label.
type ID string

// NewID makes a random id.
func NewID() ID { return ID(strings.ToLower(rand.Text()[:idSize])) }

const idSize = 16

// ParseID checks a container's id.
func ParseID(s string) (ID, error) {
	if len(s) != idSize || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return "", fmt.Errorf("cannot use %q as a container id: want %d characters of [a-z2-7]", fault.Shorten(s), idSize)
	}
	return ID(s), nil
}

// ServiceName names one of a container's services: 1 to 32 characters of [a-z0-9-] beginning with a letter,
// not ending with a dash and without two dashes in a row.
type ServiceName string

const maxService = 32

// ParseService checks the name of a service.
func ParseService(s string) (ServiceName, error) {
	ok := s != "" && len(s) <= maxService && s[0] >= 'a' && s[0] <= 'z' && s[len(s)-1] != '-' && !strings.Contains(s, "--") &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
	if !ok {
		return "", fmt.Errorf("cannot use %q as the name of a service: want 1 to %d characters of [a-z0-9-], beginning with a letter, without a dash at the end or two in a row",
			fault.Shorten(s), maxService)
	}
	return ServiceName(s), nil
}

// Hostname is where a container's service is served below the organization's host name. The empty service
// stands for the first one that the container declares.
func Hostname(organization string, c ID, s ServiceName) string {
	if s == "" {
		return "uc-" + string(c) + "." + organization
	}
	return "uc-" + string(c) + "--" + string(s) + "." + organization
}

// ParseLabel reads what stands behind "uc-" in a host name.
func ParseLabel(s string) (ID, ServiceName, error) {
	name, service, named := strings.Cut(s, "--")
	c, err := ParseID(name)
	if err != nil || !named {
		return c, "", err
	}
	of, err := ParseService(service)
	return c, of, err
}

// Service is one thing that a container serves, with an OAuth client of its own.
type Service struct {
	Name   ServiceName
	Client string   // id of its OAuth client
	Paths  []string // of its redirects; they are on the container's own names
	Scope  []string // the most that its client can be given
	Public bool     // its client keeps no secret
}

// Spec is what a caller asks for.
type Spec struct {
	Project  id.Project
	Name     string // for people
	Services []Service
	Request  keyed.Request // whose repeats are given the same container
}

// State is how a container is.
type State uint8

// The states of a container.
const (
	Creating State = iota + 1 // its OAuth clients are being made
	Down                      // it has not announced itself, or not lately
	Up                        // its heart beats
	Deleting                  // it is good for nothing and will be gone
)

// String is the state's name in answers and metrics.
func (s State) String() string {
	switch s {
	case Creating:
		return "creating"
	case Down:
		return "down"
	case Up:
		return "up"
	case Deleting:
		return "deleting"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// States lists all states.
func States() []State { return []State{Creating, Down, Up, Deleting} }

// View is a container as others see it.
type View struct {
	ID       ID
	Project  id.Project
	Name     string
	Creator  id.User
	Created  time.Time
	State    State
	Services []Service
	Serving  []ServiceName // those that it announced
	Seen     time.Time     // its last heartbeat since the agent started; zero: none
}

// What may be done with containers. Whoever serves them asks permission.Check.
var (
	CanCreate = permission.MustParse("container:create")
	CanRead   = permission.MustParse("container:read")
	CanDelete = permission.MustParse("container:delete")
	CanToken  = permission.MustParse("container:token")
	CanAccess = permission.MustParse("container:access")
)

const (
	maxName     = 100
	maxServices = 8
	maxPaths    = 9 // the first service has each on two names, and an OAuth client takes 20 redirects
	maxPath     = 500
	maxScopes   = 64
)

// check is what holds for every container, however it came here.
func (s *Spec) check() error {
	if _, err := id.ParseProject(string(s.Project)); err != nil {
		return fault.Invalid("project_id", "%v", err)
	}
	if s.Name == "" || len(s.Name) > maxName || !utf8.ValidString(s.Name) || strings.ContainsFunc(s.Name, unicode.IsControl) {
		return fault.Invalid("name", "cannot use %q as the name of a container: give 1 to %d bytes of text", fault.Shorten(s.Name), maxName)
	}
	if len(s.Services) == 0 || len(s.Services) > maxServices {
		return fault.Invalid("services", "container %q has %d services: give 1 to %d", s.Name, len(s.Services), maxServices)
	}
	for i := range s.Services {
		service := &s.Services[i]
		if _, err := ParseService(string(service.Name)); err != nil {
			return fault.Invalid("services", "%v", err)
		}
		if slices.ContainsFunc(s.Services[:i], func(o Service) bool { return o.Name == service.Name }) {
			return fault.Invalid("services", "service %s stands there twice", service.Name)
		}
		if err := service.check(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) check() error {
	if len(s.Paths) > maxPaths || len(s.Scope) > maxScopes {
		return fault.Invalid("services", "service %s has %d redirect paths and %d scopes: give at most %d and %d", s.Name, len(s.Paths), len(s.Scope), maxPaths, maxScopes)
	}
	if len(s.Paths) == 0 && s.Public {
		return fault.Invalid("services", "the OAuth client of service %s has no use: give a redirect path, or do not make it public", s.Name)
	}
	for _, p := range s.Paths {
		if !plainPath(p) {
			return fault.Invalid("services", "cannot send people to the path %q of service %s: begin it with one slash, and use letters, digits and ._~/- only", fault.Shorten(p), s.Name)
		}
	}
	return nil
}

// plainPath accepts a path that is written in one way only and cannot lead to another host.
func plainPath(p string) bool {
	if len(p) > maxPath || !strings.HasPrefix(p, "/") || strings.Contains(p, "//") {
		return false
	}
	for _, part := range strings.Split(p, "/") {
		if part == "." || part == ".." {
			return false
		}
	}
	return !strings.ContainsFunc(p, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._~/-", r)
	})
}

// redirects are where the OAuth client of the container's n-th service may send people: its own names only.
// The port is that of the host, when it is not the usual one.
func (s *Spec) redirects(hostname, port string, c ID, n int) []string {
	names := []string{Hostname(hostname, c, s.Services[n].Name)}
	if n == 0 {
		names = append(names, Hostname(hostname, c, ""))
	}
	var out []string
	for _, name := range names {
		for _, path := range s.Services[n].Paths {
			out = append(out, "https://"+name+port+path)
		}
	}
	return out
}

func (s Spec) clone() Spec {
	s.Services = slices.Clone(s.Services)
	for i := range s.Services {
		s.Services[i].Paths, s.Services[i].Scope = slices.Clone(s.Services[i].Paths), slices.Clone(s.Services[i].Scope)
	}
	return s
}
