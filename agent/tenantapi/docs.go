package tenantapi

import (
	"net/http"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// Doc is what the OpenAPI document says of a row, beside what holds for all rows, or for all of its caller. The
// tests of this package compare every answer that they get with the document.
type Doc struct {
	Summary  string
	Shows    []string // how callers prove who they are, by the names of security schemes; beside those of members
	Query    []Field  // parameters in the address
	Form     []Field  // parameters in a body of application/x-www-form-urlencoded
	Takes    any      // JSON body; nil: none
	Optional bool     // the body may be left out
	Status   int      // of the answer when all is well; zero: 200
	Leads    bool     // that answer has a Location
	Gives    any      // its JSON body; nil: none
	Also     []Answer // what else is answered
}

// Field is one parameter.
type Field struct {
	Name     string
	About    string
	Required bool
}

// Answer is one of a row's answers. Several of one status are one with several types or codes.
type Answer struct {
	Status int
	Codes  []fault.Code // it is a problem with one of these codes
	Kind   string       // media type of what is no problem; empty: application/json, or nothing
	Body   any          // its JSON body
}

// notNow is answered when what is there does not let it happen.
var notNow = []Answer{{Status: http.StatusConflict, Codes: []fault.Code{fault.Conflict}}}

// noRoom is notNow for what makes something of which there may be too many.
var noRoom = append([]Answer{{Status: http.StatusRequestEntityTooLarge, Codes: []fault.Code{fault.TooLarge}}}, notNow...)

// The pages of a login.
var (
	noLogin = []Answer{page(http.StatusRequestURITooLong), page(http.StatusInternalServerError), page(http.StatusServiceUnavailable)}

	loginDoc = Doc{
		Summary: "Log in with a browser and come back", Query: []Field{{Name: "to", About: "The path to come back to; default: /"}},
		Status: http.StatusSeeOther, Leads: true, Also: noLogin,
	}
	callbackDoc = Doc{
		Summary: "Where the platform's OpenID provider sends people back", Status: http.StatusSeeOther, Leads: true,
		Query: []Field{{Name: "state", Required: true}, {Name: "code"}, {Name: "iss"}, {Name: "error"}},
		Also: []Answer{
			page(http.StatusBadRequest), page(http.StatusForbidden), page(http.StatusBadGateway),
			{Status: http.StatusTooManyRequests, Codes: []fault.Code{fault.RateLimited}},
		},
	}
	logoutDoc  = Doc{Summary: "End the session of the browser", Status: http.StatusNoContent, Shows: []string{"session"}}
	consentDoc = Doc{
		Summary: "A person's answer on the page of consent", Status: http.StatusSeeOther, Leads: true, Shows: []string{"session"},
		Form: []Field{{Name: "ask", About: "What the page was given", Required: true}, {Name: "decision", About: "allow, or anything else"}},
		Also: []Answer{page(http.StatusBadRequest), {Status: http.StatusUnauthorized, Codes: []fault.Code{fault.Unauthenticated}}},
	}
)

func page(status int) Answer { return Answer{Status: status, Kind: "text/html"} }

// oauthErrors are answers of RFC 6749, section 5.2.
func oauthErrors(statuses ...int) []Answer {
	var out []Answer
	for _, status := range statuses {
		out = append(out, Answer{Status: status, Body: api.OAuthError{}})
	}
	return out
}

var (
	clientFields = []Field{
		{Name: "client_id", About: "Of a client that does not use HTTP Basic"}, {Name: "client_secret", About: "None of a public client"},
	}
	tokenFields = append([]Field{{Name: "token", Required: true}, {Name: "token_type_hint", About: "It is not needed"}}, clientFields...)
	// askerErrors are those of whatever a client asks for.
	askerErrors = oauthErrors(http.StatusBadRequest, http.StatusUnauthorized, http.StatusRequestEntityTooLarge, http.StatusTooManyRequests,
		http.StatusInternalServerError, http.StatusServiceUnavailable)
	authenticateDoc = Doc{Summary: "What an access token stands for", Shows: []string{"token"}, Gives: api.Authentication{}, Also: oauthErrors(http.StatusUnauthorized)}
)

// oauthDocs is what the document says of the authorization server's endpoints.
var oauthDocs = map[string]Doc{
	"GET /.well-known/oauth-authorization-server": {Summary: "What this authorization server can do (RFC 8414)", Gives: api.OAuthMetadata{}},
	"GET /oauth/authorize": {
		Summary: "Ask a person for an authorization code (RFC 6749, RFC 7636, RFC 9207)", Status: http.StatusSeeOther, Leads: true, Shows: []string{"session", "token"},
		Query: []Field{
			{Name: "response_type", About: "code", Required: true},
			{Name: "client_id", Required: true},
			{Name: "redirect_uri", About: "To the letter as it is registered; loopback addresses with any port", Required: true},
			{Name: "scope", About: "Separated by spaces; default: all that the client can be given"},
			{Name: "state", About: "It comes back as it is, up to 2048 bytes"},
			{Name: "code_challenge", About: "Public clients must send one"},
			{Name: "code_challenge_method", About: "S256"},
			{Name: "response_mode", About: "query"},
		},
		Also: append([]Answer{
			page(http.StatusOK),
			{Status: http.StatusBadRequest, Kind: "text/plain"},
			{Status: http.StatusUnauthorized, Codes: []fault.Code{fault.Unauthenticated}},
		}, noLogin...),
	},
	"POST /oauth/token": {
		Summary: "Exchange a code or a refresh token, or ask for a token of the client itself (RFC 6749)", Shows: []string{"client"},
		Form: append([]Field{
			{Name: "grant_type", About: "authorization_code, refresh_token or client_credentials", Required: true},
			{Name: "code"},
			{Name: "redirect_uri", About: "As it was sent for the code"},
			{Name: "code_verifier"},
			{Name: "refresh_token"},
			{Name: "scope", About: "No more than was given; with a code it counts for nothing"},
		}, clientFields...),
		Gives: api.OAuthToken{}, Also: askerErrors,
	},
	"GET /oauth/authenticate":  authenticateDoc,
	"POST /oauth/authenticate": authenticateDoc,
	"POST /oauth/revoke":       {Summary: "End a token (RFC 7009)", Shows: []string{"client"}, Form: tokenFields, Also: askerErrors},
	"POST /oauth/introspect": {
		Summary: "What a token stands for, for clients with a secret (RFC 7662)", Shows: []string{"client"}, Form: tokenFields, Gives: api.OAuthIntrospection{}, Also: askerErrors,
	},
}
