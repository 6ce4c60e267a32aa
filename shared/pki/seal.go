package pki

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/demiurge-platform/demiurge/shared/logging"
)

// Key is the secret that all coordinators of a cluster share and that never goes through Raft: what does
// go through Raft and must stay secret is sealed with it.
type Key struct{ secret logging.Secret }

const keySize = 32

// NewKey makes a random key.
func NewKey() Key {
	var raw [keySize]byte
	_, _ = rand.Read(raw[:]) // crypto/rand never fails since Go 1.24
	return Key{logging.NewSecret(string(raw[:]))}
}

// ParseKey reads what Reveal gave: 64 lower-case hexadecimal digits. Its error does not show them.
func ParseKey(s string) (Key, error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != keySize || hex.EncodeToString(raw) != s {
		return Key{}, refuse(Malformed, "cannot use the cluster key (%d characters): want 64 lower-case hexadecimal digits", len(s))
	}
	return Key{logging.NewSecret(string(raw))}, nil
}

// Reveal prints the key for the one file that keeps it. Nothing else prints it.
func (k Key) Reveal() string { return hex.EncodeToString([]byte(k.secret.Reveal())) }

// IsZero reports whether there is no key.
func (k Key) IsZero() bool { return k.secret.IsZero() }

// String implements fmt.Stringer and shows nothing.
func (k Key) String() string { return k.secret.String() }

// The form of a sealed text, frozen by testdata: magic and version, salt, nonce, ciphertext with tag.
const (
	sealMagic = "dmseal\x00\x01"
	saltSize  = 32
	nonceSize = 12
	tagSize   = 16
	sealInfo  = "demiurge seal v1"
	sealHead  = len(sealMagic) + saltSize + nonceSize
)

// Seal encrypts plain with AES-256-GCM under a key of its own (HKDF-SHA-256 of the cluster key and a random
// salt), so that no number of sealed texts wears the cluster key out. context says what the text is, such
// as "authority/<pin>": Open needs the same one, so one sealed text cannot be put in the place of another.
func Seal(key Key, context string, plain []byte) ([]byte, error) {
	head := make([]byte, sealHead, sealHead+len(plain)+tagSize)
	copy(head, sealMagic)
	_, _ = rand.Read(head[len(sealMagic):])
	gcm, err := aead(key, head)
	if err != nil {
		return nil, err
	}
	return gcm.Seal(head, head[sealHead-nonceSize:], plain, associated(head, context)), nil
}

// Open decrypts what Seal made with the same key and context.
func Open(key Key, context string, sealed []byte) ([]byte, error) {
	if len(sealed) < len(sealMagic) || string(sealed[:len(sealMagic)-1]) != sealMagic[:len(sealMagic)-1] {
		return nil, refuse(Malformed, "cannot open the sealed text of %s: it is not one", short(context))
	}
	if version := sealed[len(sealMagic)-1]; version != sealMagic[len(sealMagic)-1] {
		return nil, refuse(Malformed, "cannot open the sealed text of %s: it has format %d and this version reads 1; use the version that wrote it, or a newer one", short(context), version)
	}
	if len(sealed) < sealHead+tagSize {
		return nil, refuse(Malformed, "cannot open the sealed text of %s: it is cut off after %d bytes", short(context), len(sealed))
	}
	head := sealed[:sealHead]
	gcm, err := aead(key, head)
	if err != nil {
		return nil, err
	}
	plain, err := gcm.Open(nil, head[sealHead-nonceSize:], sealed[sealHead:], associated(head, context))
	if err != nil {
		return nil, because(Mismatch, err, "cannot open the sealed text of %s: the cluster key is another one, or the text was changed; give this coordinator the cluster key of the others", short(context))
	}
	return plain, nil
}

// aead derives the key of one sealed text from its salt.
func aead(key Key, head []byte) (cipher.AEAD, error) {
	if key.IsZero() {
		return nil, refuse(Malformed, "cannot seal or open without the cluster key")
	}
	derived, err := hkdf.Key(sha256.New, []byte(key.secret.Reveal()), head[len(sealMagic):len(sealMagic)+saltSize], sealInfo, keySize)
	if err != nil {
		return nil, fmt.Errorf("cannot derive a key: %w", err)
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, fmt.Errorf("cannot use a derived key: %w", err)
	}
	return cipher.NewGCM(block)
}

// associated is what is authenticated and not encrypted: the version and the context.
func associated(head []byte, context string) []byte {
	return append(append([]byte(nil), head[:len(sealMagic)]...), context...)
}
