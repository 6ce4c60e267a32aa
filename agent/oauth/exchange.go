package oauth

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// asking is a request whose client is proven.
type asking struct {
	form
	client Client
	caller string // for the limit of failed tries
}

// asker reads the body and proves who sends it: with its secret in the header or in the body, but not in
// both, or without one when it is public.
func (s *Server) asker(w http.ResponseWriter, r *http.Request) (asking, *Refusal) {
	f, refused := body(w, r)
	if refused != nil {
		return asking{}, refused
	}
	name, secret, refused := credentials(r, f)
	if refused != nil {
		return asking{}, refused
	}
	a := asking{form: f, caller: s.opts.Caller(r)}
	if validClientID(name) {
		a.caller += " " + name
	}
	if wait := s.tries.wait(a.caller); wait > 0 {
		return asking{}, &Refusal{
			Status: http.StatusTooManyRequests, Code: "temporarily_unavailable", Description: "too many failed tries: wait before the next", RetryAfter: wait,
		}
	}
	c, known := s.store.Client(ClientID(name))
	if known && c.Public && secret == "" || known && s.store.Authenticate(c.ID, secret) {
		a.client = c
		return a, nil
	}
	s.tries.failed(a.caller)
	if known {
		s.opts.Logger.Info("an OAuth client did not prove who it is", "client", c.ID)
	}
	return asking{}, unproven("the client is not known, or this is not its secret")
}

func unproven(description string) *Refusal {
	return &Refusal{Status: http.StatusUnauthorized, Code: "invalid_client", Description: description}
}

// credentials are what a client says that it is, and its secret.
func credentials(r *http.Request, f form) (name, secret string, refused *Refusal) {
	headers := r.Header.Values("Authorization")
	if len(headers) == 0 {
		if f.get("client_id") == "" {
			return "", "", unproven("the client does not say who it is")
		}
		return f.get("client_id"), f.get("client_secret"), nil
	}
	user, password, ok := r.BasicAuth()
	name, err1 := url.QueryUnescape(user) // RFC 6749, section 2.3.1
	secret, err2 := url.QueryUnescape(password)
	switch {
	case len(headers) > 1 || !ok || errors.Join(err1, err2) != nil:
		return "", "", unproven("the Authorization header is not one of HTTP Basic")
	case f.get("client_secret") != "":
		return "", "", refuse("invalid_request", "the client proves who it is in two ways: use one")
	case f.get("client_id") != "" && f.get("client_id") != name:
		return "", "", refuse("invalid_request", "header and body name two clients")
	case secret == "":
		return "", "", unproven("there is no secret in the Authorization header: a public client sends client_id in the body")
	}
	return name, secret, nil
}

// token is RFC 6749, section 3.2.
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	a, refused := s.asker(w, r)
	if refused != nil {
		s.fail(w, refused)
		return
	}
	out, err := s.exchange(r, a)
	if err == nil && out.Info.User != "" {
		if _, member := s.opts.Members.Member(out.Info.User); !member {
			if err = s.store.End(r.Context(), out); err == nil {
				err = refuse("invalid_grant", "the person is not a member of this organization any more")
			}
		}
	}
	if err != nil {
		s.note(a, err)
		s.fail(w, err)
		return
	}
	given := map[string]any{
		"access_token": out.Access.Reveal(), "token_type": "Bearer",
		"expires_in": int64(out.Info.Expires.Sub(s.opts.Now()) / time.Second), "scope": strings.Join(out.Info.Scope, " "),
	}
	if !out.Refresh.IsZero() {
		given["refresh_token"] = out.Refresh.Reveal()
	}
	answer(w, http.StatusOK, given)
}

// note counts a failed try, and says in the log what somebody should look at.
func (s *Server) note(a asking, err error) {
	var r *Refusal
	if !errors.As(err, &r) {
		return
	}
	if r.Code == "invalid_grant" {
		s.tries.failed(a.caller)
	}
	if r.Reused {
		s.opts.Logger.Warn("a code or refresh token came a second time; everything that came of it has ended", "client", a.client.ID)
	}
}

func (s *Server) exchange(r *http.Request, a asking) (Issued, error) {
	asked, refused := scopes(a.get("scope"))
	if refused != nil {
		return Issued{}, refused
	}
	switch a.get("grant_type") {
	case "authorization_code":
		v := a.get("code_verifier")
		switch {
		case a.get("code") == "":
			return Issued{}, refuse("invalid_request", "code is missing")
		case a.get("redirect_uri") == "":
			return Issued{}, refuse("invalid_request", "redirect_uri is missing: send it as it was sent for the code")
		case v != "" && (len(v) < 43 || len(v) > 128 || strings.Trim(v, unreserved) != ""):
			return Issued{}, refuse("invalid_request", "code_verifier is not 43 to 128 unreserved characters")
		}
		return s.store.Redeem(r.Context(), Redemption{Client: a.client.ID, Code: a.get("code"), Redirect: a.get("redirect_uri"), Verifier: v})
	case "refresh_token":
		if a.get("refresh_token") == "" {
			return Issued{}, refuse("invalid_request", "refresh_token is missing")
		}
		return s.store.Refresh(r.Context(), RefreshRequest{Client: a.client.ID, Token: a.get("refresh_token"), Scope: asked})
	case "client_credentials":
		return s.store.Service(r.Context(), a.client.ID, asked)
	case "":
		return Issued{}, refuse("invalid_request", "grant_type is missing")
	}
	return Issued{}, refuse("unsupported_grant_type", "use authorization_code, refresh_token or client_credentials")
}

// revoke is RFC 7009.
func (s *Server) revoke(w http.ResponseWriter, r *http.Request) {
	a, refused := s.asker(w, r)
	if refused == nil && a.get("token") == "" {
		refused = refuse("invalid_request", "token is missing")
	}
	if refused != nil {
		s.fail(w, refused)
		return
	}
	if err := s.store.Revoke(r.Context(), a.client.ID, a.get("token")); err != nil {
		s.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// introspect is RFC 7662. Any client of the organization that proves who it is may ask about access tokens,
// since each may be shown one; about a refresh token only its own client.
func (s *Server) introspect(w http.ResponseWriter, r *http.Request) {
	a, refused := s.asker(w, r)
	switch {
	case refused != nil:
	case a.client.Public:
		refused = unproven("a public client cannot ask about tokens")
	case a.get("token") == "":
		refused = refuse("invalid_request", "token is missing")
	}
	if refused != nil {
		s.fail(w, refused)
		return
	}
	info, ok := s.store.Introspect(a.get("token"))
	ok = ok && (info.Kind == Access || info.Client == a.client.ID)
	var username string
	if ok && info.User != "" {
		username, ok = s.opts.Members.Member(info.User)
	}
	if !ok {
		answer(w, http.StatusOK, map[string]any{"active": false})
		return
	}
	given := map[string]any{
		"active": true, "scope": strings.Join(info.Scope, " "), "client_id": info.Client, "exp": info.Expires.Unix(),
		"iss": s.opts.Issuer, "token_type": "Bearer",
	}
	if info.Kind == Refresh {
		given["token_type"] = "refresh_token"
	}
	if info.User != "" {
		given["sub"], given["username"] = info.User, username
	}
	answer(w, http.StatusOK, given)
}

// Authentication is the answer of /oauth/authenticate. A client that acts for itself has neither user id nor
// name.
type Authentication struct {
	UserID    string    `json:"user_id"`
	Username  string    `json:"username"`
	Scope     []string  `json:"scope"`
	ClientID  ClientID  `json:"client_id"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Authenticate tells what an access token stands for now, for everybody on this host who is shown one. A
// token of somebody who is not a member stands for nothing.
func (s *Server) Authenticate(token string) (Authentication, bool) {
	info, ok := s.store.Check(token)
	var username string
	if ok && info.User != "" {
		username, ok = s.opts.Members.Member(info.User)
	}
	if !ok {
		return Authentication{}, false
	}
	return Authentication{UserID: string(info.User), Username: username, Scope: info.Scope, ClientID: info.Client, ExpiresAt: info.Expires}, true
}

// authenticate is the platform's check of a token (RFC 6750: in the header, never in the address).
func (s *Server) authenticate(w http.ResponseWriter, r *http.Request) {
	headers := r.Header.Values("Authorization")
	challenge := `Bearer realm="` + s.opts.Issuer + `"`
	if len(headers) == 1 {
		scheme, token, _ := strings.Cut(headers[0], " ")
		if strings.EqualFold(scheme, "Bearer") {
			if who, ok := s.Authenticate(strings.TrimLeft(token, " ")); ok {
				answer(w, http.StatusOK, who)
				return
			}
			challenge += `, error="invalid_token"`
		}
	}
	w.Header().Set("WWW-Authenticate", challenge)
	answer(w, http.StatusUnauthorized, map[string]string{"error": "invalid_token", "error_description": "show an access token that is good"})
}
