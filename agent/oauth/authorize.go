package oauth

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// maxState bounds what is sent back as it came.
const maxState = 2048

// authorize is RFC 6749, section 4.1.1, with PKCE (RFC 7636) and iss (RFC 9207).
//
// Until the client and the redirect are proven to belong together an error is shown here: whoever made the
// request up must not be able to send people anywhere.
func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	if len(r.URL.RawQuery) > maxQuery {
		s.page(w, "it is too long")
		return
	}
	f, refused := parseForm(r.URL.RawQuery)
	if refused != nil {
		s.page(w, refused.Description)
		return
	}
	if f.repeated["client_id"] || f.repeated["redirect_uri"] {
		s.page(w, "client_id or redirect_uri came more than once")
		return
	}
	c, ok := s.store.Client(ClientID(f.get("client_id")))
	if !ok {
		s.page(w, "the program that sent you here is not known to this organization")
		return
	}
	back := f.get("redirect_uri")
	if !c.redirects(back) || !ownRedirect(s.store.opts.hostname, back) {
		s.page(w, "the program that sent you here wants to send you to an address that is not registered for it")
		return
	}
	if refused := asks(f); refused != nil {
		s.sendBack(w, back, f, refused)
		return
	}
	asked, refused := scopes(f.get("scope"))
	if refused == nil {
		var narrowed string
		narrowed, refused = c.narrow(asked)
		asked = strings.Fields(narrowed)
	}
	if refused == nil && c.Public && f.get("code_challenge") == "" {
		refused = refuse("invalid_request", "a public client must use PKCE: send code_challenge with code_challenge_method=S256")
	}
	if refused != nil {
		s.sendBack(w, back, f, refused)
		return
	}
	s.grant(w, r, f, Question{Client: c, Scope: asked, Redirect: back})
}

// asks checks the parameters that do not depend on the client.
func asks(f form) *Refusal {
	challenge, method := f.get("code_challenge"), f.get("code_challenge_method")
	switch {
	case len(f.repeated) > 0:
		return refuse("invalid_request", "a parameter came more than once")
	case f.get("response_type") == "":
		return refuse("invalid_request", "response_type is missing")
	case f.get("response_type") != "code":
		return refuse("unsupported_response_type", "only response_type=code is supported")
	case f.get("response_mode") != "" && f.get("response_mode") != "query":
		return refuse("invalid_request", "only response_mode=query is supported")
	case f.get("request") != "":
		return refuse("request_not_supported", "request objects are not supported")
	case f.get("request_uri") != "":
		return refuse("request_uri_not_supported", "request objects are not supported")
	case len(f.get("state")) > maxState:
		return refuse("invalid_request", "state is longer than %d bytes", maxState)
	case challenge == "" && method != "":
		return refuse("invalid_request", "code_challenge_method came without code_challenge")
	case challenge != "" && (method != "S256" || len(challenge) != 43 || strings.Trim(challenge, unreserved[:64]) != ""):
		return refuse("invalid_request", "only code_challenge_method=S256 is supported, with a challenge of 43 characters")
	}
	return nil
}

// unreserved are the characters of code verifiers; the first 64 are those of base64url.
const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"

// grant asks the person and sends him back.
func (s *Server) grant(w http.ResponseWriter, r *http.Request, f form, q Question) {
	user, ok := s.opts.Login.Who(w, r)
	if !ok {
		return
	}
	q.User = user
	if _, ok := s.opts.Members.Member(user); !ok {
		s.sendBack(w, q.Redirect, f, refuse("access_denied", "you are not a member of this organization"))
		return
	}
	switch s.opts.Consent.Ask(w, r, Question{User: user, Client: q.Client.clone(), Scope: slices.Clone(q.Scope), Redirect: q.Redirect}) {
	case Agreed:
	case Declined:
		s.sendBack(w, q.Redirect, f, refuse("access_denied", "you have declined"))
		return
	default:
		return
	}
	code, err := s.store.IssueCode(r.Context(), Consented{
		Client: q.Client.ID, User: user, Redirect: q.Redirect, Scope: q.Scope, Challenge: f.get("code_challenge"),
	})
	if err != nil {
		s.sendBack(w, q.Redirect, f, s.refusal(err))
		return
	}
	s.redirect(w, q.Redirect, f, url.Values{"code": {code.Reveal()}})
}

// sendBack tells the client why there is no code.
func (s *Server) sendBack(w http.ResponseWriter, to string, f form, refused *Refusal) {
	code := refused.Code
	if code == "invalid_client" { // it was deleted just now; the endpoint has no such error
		code = "unauthorized_client"
	}
	s.redirect(w, to, f, url.Values{"error": {code}, "error_description": {refused.Description}})
}

// redirect sends a person to an address that is proven to be the client's. 303, so that no browser sends a
// form there.
func (s *Server) redirect(w http.ResponseWriter, to string, f form, values url.Values) {
	if state := f.get("state"); state != "" && len(state) <= maxState {
		values.Set("state", state)
	}
	values.Set("iss", s.opts.Issuer)
	w.Header().Set("Location", to+"?"+values.Encode())
	w.WriteHeader(http.StatusSeeOther)
}

// page tells a person that a request cannot be trusted. The words are ours alone.
func (s *Server) page(w http.ResponseWriter, why string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = w.Write([]byte("This request for access is not valid: " + why + ".\nGo back to the program that you came from.\n"))
}
