package state

const tableCluster = "cluster"

// cluster is the one record about the log itself.
type cluster struct {
	Index uint64 `json:"index"` // of the last command applied
	ID    string `json:"id,omitzero"`
}

func clusterTable() table {
	return table{
		kind:   1,
		schema: tableOf(tableCluster, unique(indexID, func(*cluster) string { return tableCluster })),
		save:   saveAll[cluster](tableCluster),
		restore: restoreInto(tableCluster, func(t *Txn, c *cluster, _ interner) error {
			t.index = c.Index
			return nil
		}),
	}
}

func (v View) cluster(ws WatchSet) cluster {
	if c := first[cluster](v, ws, tableCluster, indexID, tableCluster); c != nil {
		return *c
	}
	return cluster{}
}

// Index is the log index of the last command in this view.
func (v View) Index() uint64 { return v.cluster(nil).Index }

// Cluster is the cluster's id; empty before it was named.
func (v View) Cluster() string { return v.cluster(nil).ID }

// SetCluster names the cluster.
func (t *Txn) SetCluster(clusterID string) {
	t.insert(tableCluster, &cluster{Index: t.index, ID: clusterID})
}
