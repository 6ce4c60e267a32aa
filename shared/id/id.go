// Package id gives every named thing of Demiurge its own type and one parser each, so that a host id
// can never be passed where a gateway id is meant and nothing outside a closed alphabet reaches a path,
// a unit name or a template.
//
// All identifiers are lower-case ASCII from [a-z0-9-] (users also allow [A-Z._@]), never empty, never a
// path element with a meaning ("." or "..").
package id

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// Organization is a tenant: a UUID in its canonical lower-case form (RFC 9562, section 4).
type Organization string

// Project is a part of an organization: 1 to 64 characters of [a-z0-9-], beginning with a letter or digit.
type Project string

// User is a platform user: 1 to 128 characters of [A-Za-z0-9._@-], beginning with a letter or digit.
type User string

// Host is a machine with an agent: a DNS label (RFC 1123) of at most 32 characters.
type Host string

// Gateway is one gateway process slot on a host: "gw-" and 10 characters of [a-z2-7].
type Gateway string

// Pool is a named set of gateways: a DNS label of at most 32 characters.
type Pool string

// Allocation is the grant of one gateway to one organization: "al-" and 16 characters of [a-z2-7].
type Allocation string

// Token is the public accessor of an API token: "tk-" and 10 characters of [a-z2-7].
type Token string

// JoinToken is the public part of a join token: "jt-" and 10 characters of [a-z2-7].
type JoinToken string

// Epoch is the Raft index of a grant. Zero means no grant.
type Epoch uint64

// String prints the epoch in decimal, as it stands in paths and headers.
func (e Epoch) String() string { return strconv.FormatUint(uint64(e), 10) }

// ParseEpoch reads a decimal epoch without sign or leading zeros; zero is refused.
func ParseEpoch(s string) (Epoch, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
		return 0, invalid("epoch", s, "a positive decimal number")
	}
	return Epoch(n), nil
}

// ParseOrganization accepts a UUID in any letter case and returns its canonical lower-case form.
func ParseOrganization(s string) (Organization, error) {
	const form = "8-4-4-4-12 hexadecimal digits"
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return "", invalid("organization id", s, form)
	}
	lower := strings.ToLower(s)
	if _, err := hex.DecodeString(strings.ReplaceAll(lower, "-", "")); err != nil || strings.Count(s, "-") != 4 {
		return "", invalid("organization id", s, form)
	}
	return Organization(lower), nil
}

// ParseProject checks a project id.
func ParseProject(s string) (Project, error) {
	if len(s) > 64 || !alnumFirst(s, lowerDigitDash) {
		return "", invalid("project id", s, "1 to 64 characters of [a-z0-9-], beginning with a letter or digit")
	}
	return Project(s), nil
}

// ParseUser checks a user id.
func ParseUser(s string) (User, error) {
	ok := func(c byte) bool {
		return lowerDigitDash(c) || c >= 'A' && c <= 'Z' || c == '.' || c == '_' || c == '@'
	}
	if len(s) > 128 || !alnumFirst(s, ok) {
		return "", invalid("user id", s, "1 to 128 characters of [A-Za-z0-9._@-], beginning with a letter or digit")
	}
	return User(s), nil
}

// ParseHost checks a host id.
func ParseHost(s string) (Host, error) {
	if !label(s) {
		return "", invalid("host id", s, labelForm)
	}
	return Host(s), nil
}

// ParsePool checks a pool name.
func ParsePool(s string) (Pool, error) {
	if !label(s) {
		return "", invalid("pool name", s, labelForm)
	}
	return Pool(s), nil
}

// ParseGateway checks a gateway id.
func ParseGateway(s string) (Gateway, error) {
	if !prefixed(s, "gw-", 10) {
		return "", invalid("gateway id", s, "gw- and 10 characters of [a-z2-7]")
	}
	return Gateway(s), nil
}

// ParseAllocation checks an allocation id.
func ParseAllocation(s string) (Allocation, error) {
	if !prefixed(s, "al-", 16) {
		return "", invalid("allocation id", s, "al- and 16 characters of [a-z2-7]")
	}
	return Allocation(s), nil
}

// ParseToken checks a token accessor.
func ParseToken(s string) (Token, error) {
	if !prefixed(s, "tk-", 10) {
		return "", invalid("token id", s, "tk- and 10 characters of [a-z2-7]")
	}
	return Token(s), nil
}

// ParseJoinToken checks the public part of a join token.
func ParseJoinToken(s string) (JoinToken, error) {
	if !prefixed(s, "jt-", 10) {
		return "", invalid("join token id", s, "jt- and 10 characters of [a-z2-7]")
	}
	return JoinToken(s), nil
}

// NewOrganization makes a random (version 4) organization id.
func NewOrganization() Organization {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails since Go 1.24
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return Organization(h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:])
}

// NewGateway makes a random gateway id. Ids come from the proposer, never from the state machine.
func NewGateway() Gateway { return Gateway("gw-" + random(10)) }

// NewAllocation makes a random allocation id.
func NewAllocation() Allocation { return Allocation("al-" + random(16)) }

// NewToken makes a random token accessor.
func NewToken() Token { return Token("tk-" + random(10)) }

// NewJoinToken makes the random public part of a join token.
func NewJoinToken() JoinToken { return JoinToken("jt-" + random(10)) }

// Secret returns 256 random bits in lower-case hexadecimal, for tokens and keys.
func Secret() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Hostname is the name that an organization is served under: org-<uuid>.<domain>.
func Hostname(org Organization, domain string) string { return "org-" + string(org) + "." + domain }

// TermName names the file or directory of what a host keeps of an organization at an epoch.
func TermName(org Organization, epoch Epoch) string { return string(org) + "." + epoch.String() }

// ParseTermName reads what TermName wrote, and no other form of the same: it would lead to another file.
func ParseTermName(s string) (Organization, Epoch, error) {
	first, number, _ := strings.Cut(s, ".")
	org, err1 := ParseOrganization(first)
	epoch, err2 := ParseEpoch(number)
	if err1 != nil || err2 != nil || TermName(org, epoch) != s {
		return "", 0, invalid("the name of what is kept of an organization", s, "<organization id>.<epoch>")
	}
	return org, epoch, nil
}

// ParseDomain checks a DNS domain (no port, no trailing dot, at most 180 characters so that every
// name below it fits in the 253 of RFC 1035).
func ParseDomain(s string) (string, error) {
	if s == "" || len(s) > 180 {
		return "", invalid("domain", s, "a DNS name of at most 180 characters")
	}
	for _, l := range strings.Split(s, ".") {
		if len(l) == 0 || len(l) > 63 || !alnumFirst(l, lowerDigitDash) || l[len(l)-1] == '-' {
			return "", invalid("domain", s, "dot-separated labels of [a-z0-9-], without a port")
		}
	}
	return s, nil
}

const labelForm = "1 to 32 characters of [a-z0-9-], beginning and ending with a letter or digit"

func label(s string) bool {
	return len(s) <= 32 && alnumFirst(s, lowerDigitDash) && s[len(s)-1] != '-'
}

func lowerDigitDash(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' }

func alnumFirst(s string, ok func(byte) bool) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	c := s[0]
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func prefixed(s, prefix string, n int) bool {
	if len(s) != len(prefix)+n || s[:len(prefix)] != prefix {
		return false
	}
	for i := len(prefix); i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func random(n int) string {
	b := make([]byte, (n*5+7)/8)
	_, _ = rand.Read(b)
	return encoding.EncodeToString(b)[:n]
}

// Hidden reports whether a character of a name that people give cannot be seen, or changes how others look: control
// characters, those of formatting (which also turn the direction of the text around), and separators of lines. The two
// joiners are none: Persian and Indic words cannot be written without them.
func Hidden(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) && r != '\u200c' && r != '\u200d'
}

// invalid names the thing, shows a bounded, quoted form of the input and says what would be right.
func invalid(what, got, want string) error {
	if len(got) > 80 {
		got = got[:80] + "…"
	}
	return fmt.Errorf("cannot use %q as %s: want %s", got, what, want)
}
