package container

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/agent/keyed"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/steps"
)

// A container is one change of as many steps as it has services: each makes the OAuth client of one. The
// container is good when the change is complete; to end it, the change is taken back. So a crash, a disk
// that refuses and a caller who gives up all leave the same thing: a change that is finished or undone by
// whoever comes next.

func stepOf(s ServiceName) string { return "client:" + string(s) }

// Made is a container that was created, with what is shown only once.
type Made struct {
	Container View
	Hosting   Hosting
	Secrets   map[string]logging.Secret // of confidential clients, by client id
}

// undoWithin bounds what is done of an undo while the caller of Create waits; the rest is done later.
const undoWithin = 5 * time.Second

// Create makes a container for a member who may. When it returns an error there is none, or what is left of it
// is being ended.
func (r *Registry) Create(ctx context.Context, creator id.User, s Spec) (Made, error) {
	s = s.clone()
	for i := range s.Services {
		if len(s.Services[i].Scope) == 0 {
			s.Services[i].Scope = []string{defaultScope}
		}
	}
	if err := s.check(); err != nil {
		return Made{}, err
	}
	if strings.ContainsFunc(s.Name, id.Hidden) { // earlier ones stay as they are
		return Made{}, fault.Invalid("name", "cannot use %q as the name of a container: leave out characters that cannot be seen or turn the text around", fault.Shorten(s.Name))
	}
	for {
		if made, done, err := r.repeat(ctx, s.Request); done {
			return made, err
		}
		if made, err := r.create(ctx, creator, s); !errors.Is(err, errTaken) {
			return made, err
		}
	}
}

// create is Create of what was checked; errTaken when there is something of the same key.
func (r *Registry) create(ctx context.Context, creator id.User, s Spec) (Made, error) {
	now := r.opts.Now()
	rec := &record{
		ID: NewID(), Project: s.Project, Name: s.Name, Creator: creator, Created: now.UTC(), Request: markOf(s.Request, now),
	}
	var names []string
	for i, service := range s.Services {
		client, err := r.clients.Prepare(r.client(rec.ID, s, i))
		if err != nil {
			return Made{}, err
		}
		service.Client = client
		rec.Services = append(rec.Services, kept(service))
		names = append(names, stepOf(service.Name))
	}
	rec.Change = steps.New(names...)
	first, _ := rec.Change.Next()
	if err := rec.Change.Begin(first, now); err != nil {
		return Made{}, err
	}
	e, err := r.insert(rec, s.Request)
	if err != nil {
		return Made{}, err
	}
	defer r.release(e)
	// A caller that goes away does not stop it half-way; whoever asks again finds it whole or gone.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.StepTimeout)
	defer cancel()
	secrets := map[string]logging.Secret{}
	err = r.forward(work, rec.ID, s.Request, secrets)
	var made Made
	if err == nil {
		made, err = r.made(rec.ID, secrets, s.Request)
	}
	if err != nil {
		r.giveUp(ctx, rec.ID)
		return Made{}, err
	}
	return made, nil
}

// defaultScope is what a client of a service may ask for when nothing is said: who the person is.
const defaultScope = "identity"

// client is what the OAuth client of a container's n-th service shall be.
func (r *Registry) client(c ID, s Spec, n int) Client {
	service, port := s.Services[n], ""
	if r.opts.Scheme == "https" && r.opts.Port != 443 {
		port = ":" + strconv.Itoa(r.opts.Port)
	}
	return Client{
		ID: service.Client, Name: fmt.Sprintf("container %s, service %s", c, service.Name), Public: service.Public,
		Service: len(service.Paths) == 0, Redirects: s.redirects(r.hostname, port, c, n), Scope: slices.Clone(service.Scope),
	}
}

// forward does the steps that are left. The first one was begun.
func (r *Registry) forward(ctx context.Context, c ID, q keyed.Request, secrets map[string]logging.Secret) error {
	for {
		rec, err := r.current(c)
		if err != nil {
			return err
		}
		action, more := rec.Change.Next()
		if !more || action.Undo {
			return nil
		}
		err = r.addClient(ctx, rec, action, q, secrets)
		if _, stored := r.change(c, err != nil, func(next *record) error {
			outcome := steps.Succeeded
			if err != nil {
				outcome = steps.Unclear // an answer may have been lost: its undo must run
			}
			return advance(&next.Change, action, outcome, r.opts.Now())
		}); err != nil || stored != nil {
			return errors.Join(err, stored)
		}
	}
}

// advance reports an action and begins the next one in the same direction, so that both are stored at once.
func advance(c *steps.Change, a steps.Action, o steps.Outcome, now time.Time) error {
	if err := c.Report(a, o, now); err != nil {
		return err
	}
	if next, more := c.Next(); more && (next != a || next.Undo) {
		return c.Begin(next, now)
	}
	return nil
}

func (r *Registry) addClient(ctx context.Context, rec *record, a steps.Action, q keyed.Request, secrets map[string]logging.Secret) error {
	n := slices.IndexFunc(rec.Services, func(k kept) bool { return stepOf(k.Name) == a.Step })
	if n < 0 {
		return fmt.Errorf("cannot take step %s: container %s has no such service", a.Step, rec.ID)
	}
	if err := r.fs.Step("container.client.add"); err != nil {
		return err
	}
	client := r.client(rec.ID, rec.spec(), n)
	client.Seed = r.seed(rec.ID, rec.Services[n].Name, q)
	secret, err := r.clients.Add(ctx, client)
	if err != nil {
		return err
	}
	if !rec.Services[n].Public {
		secrets[rec.Services[n].Client] = secret
	}
	return nil
}

// made gives a container that is whole its first token.
func (r *Registry) made(c ID, secrets map[string]logging.Secret, q keyed.Request) (Made, error) {
	hosting, err := r.issue(c, q, func(*record, time.Time) error { return nil })
	if err != nil {
		return Made{}, err
	}
	v, err := r.Get(c)
	if err == nil {
		r.host.count(func(s *Stats) { s.Created++ })
	}
	return Made{Container: v, Hosting: hosting, Secrets: secrets}, err
}

// release gives up the turn of a container and has the host's loop look at what is left of it: an undo that
// failed, or a container whose project has gone while it was made.
func (r *Registry) release(e *entry) {
	<-e.turn
	r.host.retry()
}

// giveUp takes a container back that could not be made. What fails of that is tried again by the host's loop.
func (r *Registry) giveUp(ctx context.Context, c ID) {
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
	defer cancel()
	if err := r.takeBack(work, c); err != nil && !fault.Is(err, fault.NotFound) {
		r.logger.Warn("a container that could not be made is not gone yet", "container", c, "error", err)
	}
}

// Delete ends a container with its OAuth clients and all that they gave out, its tokens and its sessions. From
// the moment it is called nothing of it is good; without an error it is gone.
func (r *Registry) Delete(ctx context.Context, c ID) error {
	e, err := r.find(c)
	if err != nil {
		return err
	}
	select {
	case e.turn <- struct{}{}:
		defer r.release(e)
	case <-ctx.Done():
		return ctx.Err()
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.opts.StepTimeout)
	defer cancel()
	if err := r.takeBack(work, c); err != nil {
		if fault.Is(err, fault.NotFound) {
			return err // somebody else was faster
		}
		return fmt.Errorf("cannot delete container %s now; it is good for nothing any more, and the rest is tried again: %w", c, err)
	}
	return nil
}

// takeBack undoes what was done of a container, in reverse, and forgets it. The turn is held.
func (r *Registry) takeBack(ctx context.Context, c ID) error {
	if _, err := r.change(c, true, func(next *record) error {
		next.Change.TakeBack()
		next.Tokens, next.Place = nil, nil
		if action, more := next.Change.Next(); more {
			return next.Change.Begin(action, r.opts.Now())
		}
		return nil
	}); err != nil {
		return err
	}
	for {
		rec, err := r.current(c)
		if err != nil {
			return err
		}
		action, more := rec.Change.Next()
		if !more {
			break
		}
		if err := r.deleteClient(ctx, rec, action); err != nil {
			return err
		}
		if _, err := r.change(c, true, func(next *record) error {
			return advance(&next.Change, action, steps.Succeeded, r.opts.Now())
		}); err != nil {
			return err
		}
	}
	if err := r.forget(c); err != nil {
		return err
	}
	r.host.count(func(s *Stats) { s.Deleted++ })
	return nil
}

func (r *Registry) deleteClient(ctx context.Context, rec *record, a steps.Action) error {
	n := slices.IndexFunc(rec.Services, func(k kept) bool { return stepOf(k.Name) == a.Step })
	if n < 0 {
		return fmt.Errorf("cannot undo step %s: container %s has no such service", a.Step, rec.ID)
	}
	if err := r.fs.Step("container.client.delete"); err != nil {
		return err
	}
	return r.clients.Delete(ctx, rec.Services[n].Client)
}

// current is the record of a container as it is now.
func (r *Registry) current(c ID) (*record, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e := r.containers[c]; e != nil && !r.closed {
		return e.record, nil
	}
	return nil, notFound(c)
}

// finish ends what is to be ended and could not be before. It returns an error while something is left.
func (r *Registry) finish(ctx context.Context) error {
	if p := r.people.Policy(); p.Organization() == r.organization { // else nothing is known of its projects
		r.orphan(p)
	}
	var errs []error
	for _, c := range r.unfinished() {
		e, err := r.find(c)
		if err != nil {
			continue
		}
		select {
		case e.turn <- struct{}{}:
		default:
			continue // whoever has it ends it, or asks for another try
		}
		work, cancel := context.WithTimeout(ctx, r.opts.StepTimeout)
		if err := r.takeBack(work, c); err != nil && !fault.Is(err, fault.NotFound) {
			errs = append(errs, fmt.Errorf("container %s: %w", c, err))
		}
		cancel()
		<-e.turn
	}
	return errors.Join(errs...)
}

// orphan takes back the containers of projects that the organization does not have any more.
func (r *Registry) orphan(p *permission.Policy) {
	for _, v := range r.List(func(project id.Project) bool { return !p.HasProject(project) }) {
		if v.State == Deleting || v.State == Creating {
			continue // it is on its way, or looked at again when it is made
		}
		if _, err := r.change(v.ID, true, func(next *record) error {
			next.Change.TakeBack()
			return nil
		}); err != nil && !fault.Is(err, fault.NotFound) {
			r.logger.Error("a container has no project any more, and the journal does not know", "container", v.ID, "error", err)
		}
	}
}

// Issue gives a container another hosting token. Without alone those before it stay good until they expire,
// as long as there are not too many.
func (r *Registry) Issue(c ID, alone bool) (Hosting, error) {
	return r.issue(c, keyed.Request{}, func(next *record, _ time.Time) error {
		if alone {
			next.Tokens = nil
		}
		return nil
	})
}

// Renew gives a container another hosting token for one that is good.
func (r *Registry) Renew(c ID, token string) (Hosting, error) {
	if err := r.authenticate(c, token); err != nil {
		return Hosting{}, err
	}
	return r.issue(c, keyed.Request{}, func(next *record, now time.Time) error {
		// It may have been taken back since.
		if claims, ok := unseal(r.signing, token, "https://"+r.hostname, r.organization, now); !ok || !next.knows(claims.ID, now) {
			return errHosting
		}
		return nil
	})
}

var errHosting = fault.New(fault.Unauthenticated, "the hosting token is not good for this container: it may have expired or been taken back; ask for another one")

// issue gives a container a hosting token, if what the caller knows of it still holds; with the call that makes the
// container, the first one.
func (r *Registry) issue(c ID, q keyed.Request, holds func(next *record, now time.Time) error) (Hosting, error) {
	now := r.opts.Now()
	tokenID, expires := r.tokenID(c, q), now.Add(r.opts.TokenLife).Truncate(time.Second).UTC()
	rec, err := r.change(c, false, func(next *record) error {
		if !next.good() {
			return fault.New(fault.Conflict, "container %s is being made or deleted", c)
		}
		if q.Given() {
			next.Request = next.Request.answered(hostingMark{Digest: digestOf(tokenID), Expires: expires}, now)
		}
		if err := holds(next, now); err != nil {
			return err
		}
		next.Tokens = withToken(next.Tokens, hostingMark{Digest: digestOf(tokenID), Expires: expires}, now)
		return nil
	})
	if err != nil {
		return Hosting{}, err
	}
	return r.hosting(rec, tokenID, now, expires), nil
}

func (r *Registry) hosting(rec *record, tokenID string, issued, expires time.Time) Hosting {
	return Hosting{Expires: expires, Token: seal(r.signing, claims{
		Issuer: "https://" + r.hostname, Audience: Audience, Subject: rec.ID, Project: rec.Project, Organization: r.organization,
		ID: tokenID, Issued: issued.Unix(), Expires: expires.Unix(),
	})}
}

// authenticate reports whether a hosting token speaks for a container now.
func (r *Registry) authenticate(c ID, token string) error {
	now := r.opts.Now()
	claims, ok := unseal(r.signing, token, "https://"+r.hostname, r.organization, now)
	if !ok || claims.Subject != c {
		return errHosting
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e := r.containers[c]; e == nil || r.closed || !e.good() || e.Project != claims.Project || !e.knows(claims.ID, now) {
		return errHosting
	}
	return nil
}
