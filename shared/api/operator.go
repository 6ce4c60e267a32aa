package api

import "time"

// RaftPeer is a coordinator as a member of the cluster.
type RaftPeer struct {
	ID        string `json:"id"`
	Address   string `json:"address" doc:"Of its port for other coordinators"`
	Voter     bool   `json:"voter" doc:"False: it gets the log, and is not counted for a majority yet"`
	Leader    bool   `json:"leader"`
	Status    string `json:"status" enum:"alive,failed,left,unknown" doc:"What the gossip says of it"`
	LastIndex uint64 `json:"last_index,omitempty" doc:"Newest entry in its state; left out when it did not answer"`
	Version   string `json:"version,omitempty"`
}

// TransferLeadership is the body of POST /v1/operator/raft/transfer.
type TransferLeadership struct {
	ID string `json:"id,omitempty" maxLength:"64" doc:"Coordinator that is to lead; default: the one that is most up to date"`
}

// LeadershipTransferred names who leads now.
type LeadershipTransferred struct {
	From   string `json:"from"`
	Leader string `json:"leader"`
}

// SnapshotRestored tells what a restore brought.
type SnapshotRestored struct {
	Index uint64 `json:"index" doc:"Of the cluster's state after the restore"`
}

// RotateCA is the body of POST /v1/operator/ca/rotate.
type RotateCA struct {
	Overlap *Duration `json:"overlap,omitempty" doc:"How long certificates of the old CA are accepted; default 72h. Every program renews its own in the first half of it"`
}

// CARotated names the new CA.
type CARotated struct {
	Pin      string    `json:"pin" doc:"Of the new CA"`
	Previous string    `json:"previous" doc:"Pin of the old CA"`
	Until    time.Time `json:"until" doc:"When certificates of the old CA are no longer accepted"`
}

// GossipKeys tells which member has which gossip key, by fingerprint. The keys themselves are never shown.
type GossipKeys struct {
	InUse   string             `json:"in_use" doc:"Fingerprint of the key that the asked coordinator encrypts with"`
	Members []MemberGossipKeys `json:"members"`
}

// MemberGossipKeys are the keys of one member of the gossip.
type MemberGossipKeys struct {
	Member string   `json:"member" doc:"role.name"`
	Status string   `json:"status"`
	Keys   []string `json:"keys" doc:"Fingerprints, the key in use first"`
}

// GossipRotated tells what became of a rotation of the gossip key.
type GossipRotated struct {
	Key      string   `json:"key" doc:"Fingerprint of the new key, which everybody who is there uses"`
	Previous string   `json:"previous" doc:"Fingerprint of the old key, which nobody who is there has any more"`
	Without  []string `json:"without" doc:"Members that were away, and learn the new key when they are back"`
}

// GossipMember is a member of the gossip: a coordinator or the agent of a host.
type GossipMember struct {
	Role    string        `json:"role" enum:"coordinator,agent"`
	Name    string        `json:"name"`
	HostID  string        `json:"host_id,omitempty"`
	Address string        `json:"address"`
	Status  string        `json:"status" enum:"alive,failed,left"`
	Since   time.Time     `json:"since" doc:"When the asked coordinator saw it take its status"`
	Flaps   int           `json:"flaps" doc:"How often it failed and came back of late"`
	Version string        `json:"version"`
	Digest  *MemberDigest `json:"digest,omitempty" doc:"What it says of its health; agents only"`

	StorageLow string `json:"storage_low,omitempty" doc:"How little room is left for its log; left out while there is enough. Coordinators only"`
}

// MemberDigest is the health of a host as its agent tells it over gossip.
type MemberDigest struct {
	Generation  uint64            `json:"generation" doc:"Of the live nginx configuration"`
	Gateways    map[string]uint32 `json:"gateways" doc:"How many in each state"`
	RouteDigest uint64            `json:"route_digest" doc:"Changes with any route of the host"`
	LoadPercent uint32            `json:"load_percent"`
	DiskFreeMiB uint32            `json:"disk_free_mib"`
	Problems    []string          `json:"problems"`
}

// NodeState is the state of one coordinator in short. Coordinators at the same index have the same hash.
type NodeState struct {
	NodeID string `json:"node_id"`
	Index  uint64 `json:"index"`
	Hash   string `json:"hash"`
}
