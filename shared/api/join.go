package api

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
}
