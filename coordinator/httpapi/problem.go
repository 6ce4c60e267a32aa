package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// problem is a fault on its way out. huma writes it because it is a huma.StatusError.
type problem struct {
	api.Problem
	retryAfter time.Duration
}

// Error implements error.
func (p *problem) Error() string { return p.Code + ": " + p.Detail }

// GetStatus implements huma.StatusError.
func (p *problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *problem) ContentType(string) string { return api.ProblemContentType }

// GetHeaders implements huma.HeadersError.
func (p *problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.retryAfter+time.Second-1)/time.Second)))
	}
	return h
}

// newProblem makes the answer for a fault; its cause stays here.
func newProblem(f *fault.Error) *problem {
	return &problem{
		Problem:    api.Problem{Status: f.Status(), Title: http.StatusText(f.Status()), Detail: f.Message, Code: string(f.Code), Errors: f.Locations},
		retryAfter: f.RetryAfter,
	}
}

// init replaces huma's error model with ours. huma has no other place for it than its package variables,
// and this package is its only home.
func init() {
	huma.ValidateStrictCasing = true // a field in another case is an unknown one
	huma.NewError = func(status int, message string, errs ...error) huma.StatusError {
		return newProblem(faultOf(status, message, errs))
	}
}

// faultOf translates what huma found wrong with a request. Values of the input are left out: they may be
// secrets.
func faultOf(status int, message string, errs []error) *fault.Error {
	switch {
	case status == http.StatusRequestEntityTooLarge:
		return fault.New(fault.TooLarge, "the request's body is larger than this call accepts; send less at a time")
	case status == http.StatusUnsupportedMediaType:
		return fault.New(fault.InvalidRequest, "cannot read a body of that type; send JSON, with the header Content-Type: application/json")
	case status >= 500:
		return fault.Wrap(fault.Internal, errors.Join(errs...), "an internal error occurred; the coordinator's log has the cause")
	}
	f := fault.New(fault.InvalidRequest, "%s", message)
	for _, err := range errs {
		var d huma.ErrorDetailer
		if errors.As(err, &d) {
			f.Locations = append(f.Locations, fault.Location{Location: d.ErrorDetail().Location, Message: remedied(d.ErrorDetail().Message)})
		} else if err != nil {
			f.Locations = append(f.Locations, fault.Location{Location: "body", Message: err.Error()})
		}
	}
	if len(f.Locations) == 0 {
		f.Locations = []fault.Location{{Location: "body", Message: message}} // such as: there is none
	}
	return invalid(f.Locations)
}

// remedied gives huma's messages that do not say what to send instead such a word.
func remedied(message string) string {
	switch message {
	case "invalid integer":
		return "want a whole number in decimal digits"
	case "invalid boolean":
		return "want true or false"
	case "unknown query parameter":
		return "unknown query parameter; /openapi.json lists those of every path"
	}
	return message
}

// invalid is the refusal of an input; its text names the first wrong part for those who read only that.
func invalid(wrong []fault.Location) *fault.Error {
	f := fault.New(fault.InvalidRequest, "cannot accept the request: %s: %s", wrong[0].Location, wrong[0].Message)
	if n := len(wrong) - 1; n > 0 {
		f.Message += fmt.Sprintf(" (and %d more)", n)
	}
	f.Locations = wrong
	return f
}

// writeProblem answers outside of huma.
func writeProblem(w http.ResponseWriter, f *fault.Error, status int) {
	p := newProblem(f)
	for k, v := range p.GetHeaders() {
		w.Header()[k] = v
	}
	if status != 0 {
		p.Status, p.Title = status, http.StatusText(status)
	}
	body, err := json.Marshal(p)
	if err != nil {
		http.Error(w, "cannot encode the problem", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", api.ProblemContentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // a client that went away needs no answer
}

// checks collects what is wrong with an input, so that the caller learns of all of it at once.
type checks []fault.Location

// add notes an error at a location; nil is no error.
func (c *checks) add(location string, err error) {
	if err != nil {
		*c = append(*c, fault.Location{Location: location, Message: err.Error()})
	}
}

// err is the refusal, or nil.
func (c checks) err() error {
	if len(c) == 0 {
		return nil
	}
	return invalid(c)
}

// parse reads one value with its parser.
func parse[T any](c *checks, location, value string, parser func(string) (T, error)) T {
	v, err := parser(value)
	c.add(location, err)
	return v
}

// optional is parse for a value that may be absent.
func optional[T any](c *checks, location, value string, parser func(string) (T, error)) T {
	if value == "" {
		var zero T
		return zero
	}
	return parse(c, location, value, parser)
}

// duration reads a duration between zero and limit; empty is zero.
func duration(c *checks, location, value string, limit time.Duration) time.Duration {
	if value == "" {
		return 0
	}
	var d api.Duration
	if err := d.UnmarshalText([]byte(value)); err != nil {
		c.add(location, err)
		return 0
	}
	return bounded(c, location, &d, limit)
}

// bounded checks a duration of a body; absent is zero.
func bounded(c *checks, location string, d *api.Duration, limit time.Duration) time.Duration {
	if d == nil {
		return 0
	}
	v := time.Duration(*d)
	if v < 0 || v > limit {
		c.add(location, fmt.Errorf("cannot use %s: want a duration from 0s to %s", v, limit))
		return 0
	}
	return v
}
