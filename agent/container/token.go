package container

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

// A hosting token lets a container speak for itself: announce itself and renew the token. It is a JSON Web
// Token (RFC 7519) that this package alone makes and checks, so its header is one fixed text: there is no
// algorithm to choose.
//
// The signature is not all. The token's id is a secret of 256 bits, and the container keeps the digests of
// those that are good: a token that was taken back is refused, and whoever reads the organization's section,
// with the key in it, can still not make one.
type claims struct {
	Issuer       string          `json:"iss"` // https://org-<uuid>.<domain>
	Audience     string          `json:"aud"`
	Subject      ID              `json:"sub"` // the container
	Project      id.Project      `json:"project_id"`
	Organization id.Organization `json:"organization_id"`
	ID           string          `json:"jti"`
	Issued       int64           `json:"iat"`
	Expires      int64           `json:"exp"`
}

// Audience is for whom hosting tokens are: the containers' own calls, and nothing else.
const Audience = "demiurge-container"

const (
	keySize    = 32
	maxToken   = 2048
	maxTokens  = 4 // good at the same time for one container, so that a renewal can be lost
	tokenIssue = 43
)

// Hosting is a token that was given out.
type Hosting struct {
	Token   logging.Secret
	Expires time.Time
}

var coding = base64.RawURLEncoding

var tokenHeader = coding.EncodeToString([]byte(`{"alg":"HS256","typ":"demiurge-hosting+jwt"}`))

// LooksHosting reports whether a credential has the form of a hosting token. Nothing else begins like one.
func LooksHosting(credential string) bool { return strings.HasPrefix(credential, tokenHeader+".") }

func newKey() []byte {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // crypto/rand never fails since Go 1.24
	return key
}

func sign(key []byte, text string) string {
	mac := hmac.New(sha256.New, key)
	_, _ = io.WriteString(mac, text)
	return coding.EncodeToString(mac.Sum(nil))
}

// seal makes a token of claims.
func seal(key []byte, c claims) logging.Secret {
	body, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings and numbers only
	}
	text := tokenHeader + "." + coding.EncodeToString(body)
	return logging.NewSecret(text + "." + sign(key, text))
}

// unseal gives the claims of a token that was made with the key, for this organization, and has not expired.
func unseal(key []byte, token string, issuer string, org id.Organization, now time.Time) (claims, bool) {
	var c claims
	end := strings.LastIndexByte(token, '.')
	if len(token) > maxToken || end < 0 || !strings.HasPrefix(token, tokenHeader+".") ||
		!hmac.Equal([]byte(token[end+1:]), []byte(sign(key, token[:end]))) {
		return c, false
	}
	body, err := coding.DecodeString(token[len(tokenHeader)+1 : end])
	if err != nil {
		return c, false
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if d.Decode(&c) != nil {
		return claims{}, false
	}
	return c, c.Audience == Audience && c.Issuer == issuer && c.Organization == org && len(c.ID) == tokenIssue && now.Before(time.Unix(c.Expires, 0))
}

func newTokenID() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return coding.EncodeToString(b[:])
}

func digestOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// withToken adds a mark to those that are good at a moment and leaves the newest.
func withToken(marks []hostingMark, m hostingMark, now time.Time) []hostingMark {
	kept := slices.DeleteFunc(slices.Clone(marks), func(o hostingMark) bool { return !now.Before(o.Expires) })
	kept = append(kept, m)
	if over := len(kept) - maxTokens; over > 0 {
		kept = kept[over:]
	}
	return kept
}

// knows reports whether the container has a token of that id that is good at a moment.
func (r *record) knows(tokenID string, now time.Time) bool {
	digest := digestOf(tokenID)
	return slices.ContainsFunc(r.Tokens, func(m hostingMark) bool {
		return hmac.Equal([]byte(m.Digest), []byte(digest)) && now.Before(m.Expires)
	})
}
