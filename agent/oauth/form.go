package oauth

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxQuery      = 8 << 10
	maxBody       = 16 << 10
	maxParameters = 40
)

// form is the parameters of a request, each with its one value. One without a value is not there (RFC 6749,
// section 3.1).
type form struct {
	values   map[string]string
	repeated map[string]bool // came more than once; they have no value
}

func (f form) get(name string) string { return f.values[name] }

// parseForm reads parameters. Text that cannot be read in one way only is refused.
func parseForm(raw string) (form, *Refusal) {
	f := form{values: map[string]string{}, repeated: map[string]bool{}}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return f, refuse("invalid_request", "the parameters are not well-formed")
	}
	if len(values) > maxParameters {
		return f, refuse("invalid_request", "there are more than %d parameters", maxParameters)
	}
	for name, all := range values {
		if len(all) > 1 {
			f.repeated[name] = true
			continue
		}
		if !utf8.ValidString(all[0]) || strings.ContainsFunc(all[0], unicode.IsControl) {
			return f, refuse("invalid_request", "a parameter holds characters that are not text")
		}
		if all[0] != "" {
			f.values[name] = all[0]
		}
	}
	return f, nil
}

// body reads the parameters of a POST. They stand in the body and nowhere else: an address ends up in logs.
func body(w http.ResponseWriter, r *http.Request) (form, *Refusal) {
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		return form{}, refuse("invalid_request", "send the parameters in the body: the address of a request is kept in logs")
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		return form{}, refuse("invalid_request", "send the parameters as application/x-www-form-urlencoded")
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		too := refuse("invalid_request", "the body is larger than %d bytes", maxBody)
		too.Status = http.StatusRequestEntityTooLarge
		return form{}, too
	} else if err != nil {
		return form{}, refuse("invalid_request", "the body did not arrive whole")
	}
	f, refused := parseForm(string(raw))
	if refused == nil && len(f.repeated) > 0 {
		refused = refuse("invalid_request", "a parameter came more than once")
	}
	return f, refused
}

// scopes reads a list of scopes.
func scopes(raw string) ([]string, *Refusal) {
	if raw == "" {
		return nil, nil
	}
	all := strings.Split(raw, " ")
	if len(all) > maxScopes {
		return nil, refuse("invalid_scope", "there are more than %d scopes", maxScopes)
	}
	for _, s := range all {
		if !validScope(s) {
			return nil, refuse("invalid_scope", "the scope is not well-formed: separate scopes by one space")
		}
	}
	return all, nil
}
