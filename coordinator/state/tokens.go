package state

import (
	"iter"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// Token is an API token. Only the hash of its secret is kept.
type Token struct {
	ID          id.Token  `json:"id,omitzero"`
	Role        string    `json:"role,omitzero"`
	Name        string    `json:"name,omitzero"`
	Host        id.Host   `json:"host,omitzero"` // of role agent
	Hash        string    `json:"hash,omitzero"` // hexadecimal SHA-256
	CreatedAt   time.Time `json:"created_at,omitzero"`
	ExpiresAt   time.Time `json:"expires_at,omitzero"` // zero: never
	CreateIndex uint64    `json:"create_index,omitzero"`
	ModifyIndex uint64    `json:"modify_index,omitzero"`
}

const (
	tableTokens = "tokens"
	indexHash   = "hash"
)

func tokenTable() table {
	return table{
		kind: 5,
		schema: tableOf(tableTokens,
			unique(indexID, func(k *Token) string { return string(k.ID) }),
			unique(indexHash, func(k *Token) string { return k.Hash })),
		save:    saveAll[Token](tableTokens),
		restore: restoreInto[Token](tableTokens, nil),
	}
}

// Token gives a token; nil when it is unknown.
func (v View) Token(ws WatchSet, token id.Token) *Token {
	return first[Token](v, ws, tableTokens, indexID, string(token))
}

// TokenByHash gives the token whose secret has this hexadecimal SHA-256; nil when there is none.
func (v View) TokenByHash(hash string) *Token {
	return first[Token](v, nil, tableTokens, indexHash, hash)
}

// Tokens ranges over all tokens by id.
func (v View) Tokens(ws WatchSet) iter.Seq[*Token] {
	return v.TokensAfter(ws, "")
}

// TokensAfter is Tokens for those after one.
func (v View) TokensAfter(ws WatchSet, after id.Token) iter.Seq[*Token] {
	return all[Token](v, ws, tableTokens, string(after))
}

// PutToken stores a token.
func (t *Txn) PutToken(next Token) *Token {
	k := &next
	k.CreatedAt, k.CreateIndex, k.ModifyIndex = t.at, t.about.Index, t.about.Index
	t.insert(tableTokens, k)
	return k
}

// RemoveToken forgets a token.
func (t *Txn) RemoveToken(k *Token) { t.remove(tableTokens, k) }
