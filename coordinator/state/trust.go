package state

import (
	"iter"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Trust is what the programs of the cluster trust each other by. There is one record. What is secret in it
// is sealed with the cluster key, which is not in the log.
type Trust struct {
	Bundle      []byte    `json:"bundle,omitzero"`    // the roots that are trusted, encoded by shared/pki
	Authority   []byte    `json:"authority,omitzero"` // the sealed authority that issues certificates
	Keyring     []byte    `json:"keyring,omitzero"`   // the sealed gossip keys
	ChangedAt   time.Time `json:"changed_at,omitzero"`
	ModifyIndex uint64    `json:"modify_index,omitzero"` // the version: a change names the one it is based on
}

// JoinToken lets one program in, once. Only the hash of its secret is kept. One that was used stays until
// it expires: the program that used it may not have got its answer.
type JoinToken struct {
	ID          id.JoinToken `json:"id,omitzero"`
	Role        string       `json:"role,omitzero"` // agent or coordinator
	Name        string       `json:"name,omitzero"` // the only name it may be used for; empty: any that is not taken
	Hash        string       `json:"hash,omitzero"` // hexadecimal SHA-256
	CreatedAt   time.Time    `json:"created_at,omitzero"`
	ExpiresAt   time.Time    `json:"expires_at,omitzero"`
	UsedAt      time.Time    `json:"used_at,omitzero"`  // zero: not used yet
	UsedBy      string       `json:"used_by,omitzero"`  // the name that it was used for
	UsedKey     string       `json:"used_key,omitzero"` // hexadecimal SHA-256 of the public key that it was used with
	CreateIndex uint64       `json:"create_index,omitzero"`
	ModifyIndex uint64       `json:"modify_index,omitzero"`
}

// Used reports whether the token has let its program in.
func (k *JoinToken) Used() bool { return k.UsedKey != "" }

// Enrolment is a program that was let in. Its certificates are good while the record is there.
type Enrolment struct {
	Role        string       `json:"role,omitzero"`
	Name        string       `json:"name,omitzero"`
	JoinToken   id.JoinToken `json:"join_token,omitzero"` // that it used
	ValidFrom   time.Time    `json:"valid_from,omitzero"` // certificates from before belong to an enrolment that has ended
	CreateIndex uint64       `json:"create_index,omitzero"`
	ModifyIndex uint64       `json:"modify_index,omitzero"`
}

const (
	tableTrust      = "trust"
	tableJoinTokens = "join_tokens"
	tableEnrolments = "enrolments"
	theTrust        = "trust" // key of the one record
)

func trustTable() table {
	return table{
		kind:    9,
		schema:  tableOf(tableTrust, unique(indexID, func(*Trust) string { return theTrust })),
		save:    saveAll[Trust](tableTrust),
		restore: restoreInto[Trust](tableTrust, nil),
	}
}

func joinTokenTable() table {
	return table{
		kind:    10,
		schema:  tableOf(tableJoinTokens, unique(indexID, func(k *JoinToken) string { return string(k.ID) })),
		save:    saveAll[JoinToken](tableJoinTokens),
		restore: restoreInto[JoinToken](tableJoinTokens, nil),
	}
}

func enrolmentTable() table {
	return table{
		kind:    11,
		schema:  tableOf(tableEnrolments, unique(indexID, func(e *Enrolment) string { return enrolmentKey(e.Role, e.Name) })),
		save:    saveAll[Enrolment](tableEnrolments),
		restore: restoreInto[Enrolment](tableEnrolments, nil),
	}
}

func enrolmentKey(role, name string) string { return role + "/" + name }

// Trust gives the record; nil before there is one.
func (v View) Trust(ws WatchSet) *Trust {
	return first[Trust](v, ws, tableTrust, indexID, theTrust)
}

// JoinToken gives a join token; nil when it is unknown.
func (v View) JoinToken(ws WatchSet, token id.JoinToken) *JoinToken {
	return first[JoinToken](v, ws, tableJoinTokens, indexID, string(token))
}

// JoinTokens ranges over all join tokens by id.
func (v View) JoinTokens(ws WatchSet) iter.Seq[*JoinToken] {
	return v.JoinTokensAfter(ws, "")
}

// JoinTokensAfter is JoinTokens for those after one.
func (v View) JoinTokensAfter(ws WatchSet, after id.JoinToken) iter.Seq[*JoinToken] {
	return all[JoinToken](v, ws, tableJoinTokens, string(after))
}

// Enrolment gives the enrolment of a program; nil when it has none.
func (v View) Enrolment(ws WatchSet, role, name string) *Enrolment {
	return first[Enrolment](v, ws, tableEnrolments, indexID, enrolmentKey(role, name))
}

// Enrolments ranges over all enrolments by role and name.
func (v View) Enrolments(ws WatchSet) iter.Seq[*Enrolment] {
	return all[Enrolment](v, ws, tableEnrolments, "")
}

// PutTrust stores the record.
func (t *Txn) PutTrust(next Trust) {
	next.ChangedAt, next.ModifyIndex = t.at, t.about.Index
	t.insert(tableTrust, &next)
}

// PutJoinToken stores a new join token.
func (t *Txn) PutJoinToken(next JoinToken) {
	next.CreatedAt, next.CreateIndex, next.ModifyIndex = t.at, t.about.Index, t.about.Index
	t.insert(tableJoinTokens, &next)
}

// UseJoinToken notes that a join token has let a program in.
func (t *Txn) UseJoinToken(next JoinToken) {
	next.UsedAt, next.ModifyIndex = t.at, t.about.Index
	t.insert(tableJoinTokens, &next)
}

// RemoveJoinToken forgets a join token.
func (t *Txn) RemoveJoinToken(k *JoinToken) { t.remove(tableJoinTokens, k) }

// PutEnrolment stores an enrolment in the place of an earlier one of the same program.
func (t *Txn) PutEnrolment(next Enrolment) {
	next.CreateIndex, next.ModifyIndex = t.about.Index, t.about.Index
	t.insert(tableEnrolments, &next)
}

// RemoveEnrolment ends an enrolment.
func (t *Txn) RemoveEnrolment(e *Enrolment) { t.remove(tableEnrolments, e) }
