package state

// cluster is what is known about the log itself. It is no table: every transaction changes it, and a table
// would make each of them pay for that.
type cluster struct {
	Index uint64 `json:"index"` // of the last command applied
	ID    string `json:"id,omitzero"`
}

// Index is the log index of the last command in this view.
func (v View) Index() uint64 { return v.about.Index }

// Cluster is the cluster's id; empty before it was named.
func (v View) Cluster() string { return v.about.ID }

// SetCluster names the cluster.
func (t *Txn) SetCluster(clusterID string) { t.about.ID = clusterID }
