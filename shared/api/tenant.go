package api

import "time"

// The bodies of what the agent answers on organizations' host names.

// Permissions is what the caller is in the organization.
type Permissions struct {
	UserID  string      `json:"user_id"`
	Role    string      `json:"role" enum:"owner,admin,member"`
	Grants  []RoleGrant `json:"grants"`
	Version uint64      `json:"version" doc:"Rises whenever somebody's permissions change"`
}

// RoleGrant is a role that a user was granted beside his membership.
type RoleGrant struct {
	Role      string `json:"role"`
	ProjectID string `json:"project_id,omitempty" doc:"Empty: in the whole organization"`
}

// RoleGrants is a user's.
type RoleGrants struct {
	UserID string      `json:"user_id"`
	Items  []RoleGrant `json:"items"`
}

// Allowed answers whether the caller may do something.
type Allowed struct {
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason"`
}

// Role is a named set of permissions.
type Role struct {
	Name        string   `json:"name"`
	Level       string   `json:"level" enum:"organization,project" doc:"Where it can be granted"`
	Permissions []string `json:"permissions" doc:"area:action; either may be *"`
	System      bool     `json:"system,omitempty" doc:"It belongs to the system and cannot be changed"`
}

// Roles lists the roles of an organization.
type Roles struct {
	Items []Role `json:"items"`
}

// PutRole is the body of PUT /roles/{role}.
type PutRole struct {
	Level       string   `json:"level" enum:"organization,project"`
	Permissions []string `json:"permissions" minItems:"1" maxItems:"200"`
}

// CreateOAuthClient is the body of POST /oauth/clients.
type CreateOAuthClient struct {
	Name      string   `json:"name" minLength:"1" maxLength:"100" doc:"Shown to people who are asked for their consent"`
	Public    bool     `json:"public,omitempty" doc:"It cannot keep a secret, and uses PKCE"`
	Service   bool     `json:"service,omitempty" doc:"It may ask for tokens for itself"`
	Redirects []string `json:"redirects,omitempty" maxItems:"20" doc:"Exact addresses, on the organization's names or the person's machine"`
	Scope     []string `json:"scope" minItems:"1" maxItems:"64" doc:"The most that it can be given"`
}

// OAuthClient is a program that asks for tokens of an organization.
type OAuthClient struct {
	ClientID  string   `json:"client_id"`
	Name      string   `json:"name"`
	Public    bool     `json:"public"`
	Service   bool     `json:"service"`
	Redirects []string `json:"redirects"`
	Scope     []string `json:"scope"`
	Secret    string   `json:"client_secret,omitempty" doc:"In the answer to its creation, and in repeats of that, only"`
}

// OAuthClients lists the clients of an organization.
type OAuthClients struct {
	Items []OAuthClient `json:"items"`
}

// Authentication is what an access token stands for: the answer of /oauth/authenticate. A client that acts for
// itself has neither user id nor name.
type Authentication struct {
	UserID    string    `json:"user_id"`
	Username  string    `json:"username"`
	Scope     []string  `json:"scope"`
	ClientID  string    `json:"client_id"`
	ExpiresAt time.Time `json:"expires_at"`
}

// OAuthToken is the answer of /oauth/token (RFC 6749, section 5.1).
type OAuthToken struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type" doc:"Bearer"`
	ExpiresIn    int64  `json:"expires_in" doc:"Seconds"`
	Scope        string `json:"scope"`
	RefreshToken string `json:"refresh_token,omitempty" doc:"None for a client that acts for itself"`
}

// OAuthIntrospection is the answer of /oauth/introspect (RFC 7662). Of a token that is not active nothing more is said.
type OAuthIntrospection struct {
	Active    bool   `json:"active"`
	Scope     string `json:"scope,omitempty"`
	ClientID  string `json:"client_id,omitempty"`
	Expires   int64  `json:"exp,omitempty"`
	Issuer    string `json:"iss,omitempty"`
	TokenType string `json:"token_type,omitempty" doc:"Bearer or refresh_token"`
	Subject   string `json:"sub,omitempty" doc:"None of a client that acts for itself"`
	Username  string `json:"username,omitempty"`
}

// OAuthError is why an OAuth endpoint refuses a request (RFC 6749, section 5.2).
type OAuthError struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

// OAuthMetadata is what an authorization server says of itself (RFC 8414).
type OAuthMetadata struct {
	Issuer                    string   `json:"issuer"`
	AuthorizationEndpoint     string   `json:"authorization_endpoint"`
	TokenEndpoint             string   `json:"token_endpoint"`
	RevocationEndpoint        string   `json:"revocation_endpoint"`
	IntrospectionEndpoint     string   `json:"introspection_endpoint"`
	ResponseTypes             []string `json:"response_types_supported"`
	ResponseModes             []string `json:"response_modes_supported"`
	GrantTypes                []string `json:"grant_types_supported"`
	TokenAuthMethods          []string `json:"token_endpoint_auth_methods_supported"`
	RevocationAuthMethods     []string `json:"revocation_endpoint_auth_methods_supported"`
	IntrospectionAuthMethods  []string `json:"introspection_endpoint_auth_methods_supported"`
	CodeChallengeMethods      []string `json:"code_challenge_methods_supported"`
	IssuerInAuthorizationBack bool     `json:"authorization_response_iss_parameter_supported"`
}
