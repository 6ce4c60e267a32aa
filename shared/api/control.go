package api

// The agent's socket of a gateway (DEMIURGE_CONTROL). The agent answers there for the organization that the
// gateway was given, at its epoch, and for nothing else.

// Check asks whether whoever made a request may do something. Body of POST /v1/check. Authorization and Cookie
// are the headers of that request, as they came.
type Check struct {
	Authorization []string `json:"authorization,omitempty"`
	Cookie        []string `json:"cookie,omitempty"`
	Action        string   `json:"action"`
	ProjectID     string   `json:"project_id,omitempty"`
}

// Checked is the answer. It holds while Version is the organization's, and no longer than GoodFor: credentials
// end without a new version.
type Checked struct {
	Allowed  bool     `json:"allowed"`
	Known    bool     `json:"known"` // the credential is good; false: whoever it is has to log in
	Reason   string   `json:"reason"`
	UserID   string   `json:"user_id,omitempty"`
	Username string   `json:"username,omitempty"`
	Version  uint64   `json:"version"`
	GoodFor  Duration `json:"good_for"`
}

// Changes is the answer to GET /v1/changes?version=N&wait=20s, which is given when the version is another than N
// or the wait is over. The version rises whenever somebody may do more or less than before.
type Changes struct {
	Version uint64 `json:"version"`
}
