package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"strings"
)

const (
	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY"
	blockRequest     = "CERTIFICATE REQUEST"
)

// maxPEM bounds every text that is read: the largest, a bundle in the middle of a rotation, has some 2 KiB.
const maxPEM = 64 << 10

// section is one block of a PEM text with the lines that stand before it (RFC 7468, section 5.2).
type section struct {
	notes []string
	der   []byte
}

// splitPEM reads a text of blocks of one type, strictly: encoding/pem steps over what it cannot read, so
// that a damaged first certificate would silently make the second one the first.
func splitPEM(what, blockType, text string) ([]section, error) {
	if len(text) > maxPEM {
		return nil, refuse(Malformed, "cannot read %s: it has %d bytes and at most %d are allowed", what, len(text), maxPEM)
	}
	var out []section
	for rest := []byte(text); len(bytes.TrimSpace(rest)) > 0; {
		start := bytes.Index(rest, []byte("-----BEGIN "))
		block, next := pem.Decode(rest)
		if start < 0 || block == nil {
			return nil, refuse(Malformed, "cannot read %s: no PEM block begins after block %d", what, len(out))
		}
		if bytes.Count(rest[:len(rest)-len(next)], []byte("-----BEGIN")) != 1 || len(block.Headers) > 0 {
			return nil, refuse(Malformed, "cannot read %s: its PEM block %d is damaged", what, len(out)+1)
		}
		if block.Type != blockType {
			return nil, refuse(Malformed, "cannot read %s: its PEM block %d is a %q, want a %s", what, len(out)+1, short(block.Type), blockType)
		}
		var notes []string
		for line := range strings.Lines(string(rest[:start])) {
			if line = strings.TrimSpace(line); line != "" {
				notes = append(notes, line)
			}
		}
		out = append(out, section{notes: notes, der: block.Bytes})
		rest = next
	}
	if len(out) == 0 {
		return nil, refuse(Malformed, "cannot read %s: it is empty", what)
	}
	return out, nil
}

// onePEM is splitPEM for a text of exactly one block and nothing else.
func onePEM(what, blockType, text string) ([]byte, error) {
	sections, err := splitPEM(what, blockType, text)
	if err != nil {
		return nil, err
	}
	if len(sections) != 1 || len(sections[0].notes) > 0 {
		return nil, refuse(Malformed, "cannot read %s: want one PEM block and nothing else", what)
	}
	return sections[0].der, nil
}

// chainPEM reads certificates, the leaf first.
func chainPEM(what, text string) ([]*x509.Certificate, error) {
	sections, err := splitPEM(what, blockCertificate, text)
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	for n, s := range sections {
		cert, err := x509.ParseCertificate(s.der)
		if err != nil || len(s.notes) > 0 {
			return nil, because(Malformed, err, "cannot read %s: its certificate %d is damaged", what, n+1)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

func toPEM(blockType string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der}))
}
