package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// maxName is the longest name of an organization, in characters.
const maxName = 200

// What may be wrong with an activation, beside ids.
var (
	errEpoch    = errors.New("want a positive number")
	errName     = fmt.Errorf("want at most %d characters, none of them a control character", maxName)
	errHostname = errors.New("want org-<organization_id>.<domain>")
	errRole     = errors.New("want owner, admin or member")
	errSections = errors.New("this release has nothing that could restore sections: use one that has")
)

func element(list string, i int, field string) string {
	return list + "[" + strconv.Itoa(i) + "]." + field
}

// decode reads a JSON body strictly: one value, known fields only, within the limit.
func decode(w http.ResponseWriter, r *http.Request, limit int64, into any) error {
	if r.ContentLength > limit { // said before it is sent
		return tooLarge(limit)
	}
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); r.Header.Get("Content-Type") != "" && (err != nil || ct != "application/json") {
		return fault.New(fault.InvalidRequest, "cannot read a body of type %q: send application/json", r.Header.Get("Content-Type"))
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return nil
		} else if err == nil {
			err = errors.New("there is more behind the first value")
		}
	}
	var over *http.MaxBytesError
	if errors.As(err, &over) {
		return tooLarge(limit)
	}
	return fault.New(fault.InvalidRequest, "cannot read the body: %v: send one JSON object as documented", err)
}

func tooLarge(limit int64) error {
	return fault.New(fault.TooLarge, "the body is longer than %d bytes", limit)
}

// warm reads an activation as the first one will be read: what is learned of the types on the way is learned
// while the gateway waits in its pool, and not while an organization waits for the gateway.
func warm() {
	var a api.Activate
	dec := json.NewDecoder(strings.NewReader(`{"organization_id":"","epoch":1,"members":[{"user_id":""}],"projects":[{"project_id":""}]}`))
	dec.DisallowUnknownFields()
	_ = dec.Decode(&a)
	_, _ = parseGrant(a)
	_ = json.NewEncoder(io.Discard).Encode(api.GatewayHealth{})
}

// writeJSON answers with a body.
func writeJSON(w http.ResponseWriter, status int, contentType string, body any) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the caller is gone: nobody is left to tell
}

// refuse answers with the problem that err carries. The cause of an internal one stays in the log.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, err error) {
	f := fault.From(err)
	if f.Code == fault.Internal {
		g.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	g.problem(w, f.Status(), f)
}

func (g *Gateway) problem(w http.ResponseWriter, status int, f *fault.Error) {
	writeJSON(w, status, api.ProblemContentType, api.Problem{
		Status: status, Title: http.StatusText(status), Detail: f.Message, Code: string(f.Code), Errors: f.Locations,
	})
}
