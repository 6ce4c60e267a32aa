package state

import (
	"iter"
	"time"
)

const tableRequests = "requests"

// Request is an idempotency key that has been answered.
type Request struct {
	Key     string    `json:"key"`
	Digest  string    `json:"digest,omitzero"` // of the body it came with
	Kind    string    `json:"kind"`            // of what it made: KindAllocation, KindToken
	Objects []string  `json:"objects"`         // what it made, in the order of its items; "" where an item was refused
	At      time.Time `json:"at"`
}

// Kinds of requests.
const (
	KindAllocation = "allocation"
	KindToken      = "token"
	KindJoinToken  = "join_token"
	KindMove       = "move"
)

func requestTable() table {
	return table{
		kind:    6,
		schema:  tableOf(tableRequests, unique(indexID, func(r *Request) string { return r.Key })),
		save:    saveAll[Request](tableRequests),
		restore: restoreInto[Request](tableRequests, nil),
	}
}

// Request is the answered request of an idempotency key; nil when it is new.
func (v View) Request(key string) *Request {
	return first[Request](v, nil, tableRequests, indexID, key)
}

// Requests ranges over the answered requests by key.
func (v View) Requests(ws WatchSet) iter.Seq[*Request] {
	return all[Request](v, ws, tableRequests, "")
}

// PutRequest keeps an answer.
func (t *Txn) PutRequest(r Request) { t.insert(tableRequests, &r) }

// RemoveRequest forgets an answer.
func (t *Txn) RemoveRequest(r *Request) { t.remove(tableRequests, r) }
