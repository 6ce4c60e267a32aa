package api

import "time"

// Joining: a program without a certificate calls POST /v1/join with a join token as its bearer token, over
// TLS whose CA it has compared with the pin in the token. A certificate is renewed with the same bodies,
// over mutual TLS and without a token.

// JoinRequest asks for a certificate. Who it will be for is said by the token (or, for a renewal, by the
// certificate of the connection); of the signing request only the public key is used.
type JoinRequest struct {
	CSR     string `json:"csr" maxLength:"16384" doc:"PKCS #10 signing request, PEM; only its public key is used"`
	Role    string `json:"role" enum:"coordinator,agent" doc:"What the caller means to be: another role than the token's is refused without spending the token"`
	Name    string `json:"name" maxLength:"32" doc:"Host or node id that the caller means to have: another than the token's is refused without spending the token"`
	Version string `json:"version" maxLength:"64" doc:"Of the caller's program"`
}

// JoinAnswer is a certificate, whom to trust, and where the cluster is.
type JoinAnswer struct {
	Certificate string      `json:"certificate" doc:"The certificate, PEM, and what chains it to an older CA during a rotation"`
	CA          string      `json:"ca" doc:"The CAs to trust, PEM, the one that signs now first; a line Trusted-Until ends an older one"`
	Cluster     JoinCluster `json:"cluster"`
}

// JoinCluster is what a member must know to find the others.
type JoinCluster struct {
	ClusterID     string   `json:"cluster_id"`
	APIAddresses  []string `json:"api_addresses" doc:"host:port of the coordinators' API"`
	RaftAddresses []string `json:"raft_addresses,omitempty" doc:"host:port, for coordinators only"`
	SerfAddresses []string `json:"serf_addresses,omitempty" doc:"host:port to join the gossip at"`
	GossipKey     string   `json:"gossip_key,omitempty" doc:"Secret, base64: what the gossip is encrypted with"`
	ClusterKey    string   `json:"cluster_key,omitempty" doc:"Secret, for coordinators only: the key that all coordinators share"`
	Trust         []byte   `json:"trust,omitempty" doc:"For coordinators only, base64: the CA and the gossip keys, sealed with the cluster key"`
}

// CreateJoinToken is the body of POST /v1/join-tokens.
type CreateJoinToken struct {
	Role string    `json:"role" enum:"agent,coordinator" doc:"What the program that joins will be; only an admin may bring in a coordinator"`
	Name string    `json:"name,omitempty" maxLength:"32" doc:"The host or node id that it is for; default: any that is not taken. One that is taken is replaced: its certificates end"`
	TTL  *Duration `json:"ttl,omitempty" doc:"Default 1h, at most 24h"`
}

// JoinToken is a join token without its secret.
type JoinToken struct {
	JoinTokenID string     `json:"join_token_id"`
	Role        string     `json:"role"`
	Name        string     `json:"name,omitempty"`
	CreatedAt   time.Time  `json:"created_at"`
	ExpiresAt   time.Time  `json:"expires_at"`
	UsedAt      *time.Time `json:"used_at,omitempty"`
	UsedBy      string     `json:"used_by,omitempty" doc:"Host or node id that joined with it"`
	Index       uint64     `json:"index"`
}

// CreatedJoinToken is a new join token with its text, which is shown this once.
type CreatedJoinToken struct {
	JoinToken
	Secret string `json:"secret" doc:"The text to give to the program that joins"`
}
