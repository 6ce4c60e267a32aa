package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"
)

// Uses of a founding secret. Each gives an independent one; the words are frozen, because the members of a
// new cluster must all make the same.
const (
	foundingCA      = "demiurge founding ca v1"
	foundingSerial  = "demiurge founding serial v1"
	foundingCluster = "demiurge founding cluster v1"
	foundingGossip  = "demiurge founding gossip v1"
)

// FoundingCluster is the id of the cluster that begins with a key: a UUID (version 8, RFC 9562).
func FoundingCluster(key Key) (string, error) {
	raw, err := found(key, foundingCluster, 16)
	if err != nil {
		return "", err
	}
	raw[6], raw[8] = raw[6]&0x0f|0x80, raw[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:]), nil
}

// FoundingGossip is the first key of the gossip of the cluster that begins with a key: 32 bytes.
func FoundingGossip(key Key) ([]byte, error) { return found(key, foundingGossip, 32) }

// FoundingAuthority is the CA that a cluster begins with. It is made from the cluster key alone, so that
// coordinators which have nothing but the key can trust each other before any of them leads: their roots
// have the same key, name and serial, and differ in when they begin. Later ones come from Rotate.
func FoundingAuthority(key Key, now time.Time) (*Authority, error) {
	cluster, err := FoundingCluster(key)
	if err != nil {
		return nil, err
	}
	serial, err := found(key, foundingSerial, 16)
	if err != nil {
		return nil, err
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive and of full length
	private, err := foundingKey(key)
	if err != nil {
		return nil, err
	}
	template := caTemplate(cluster, now, now.Add(DefaultRootLife))
	template.SerialNumber = new(big.Int).SetBytes(serial)
	template.MaxPathLen = 1
	template.Subject = pkix.Name{CommonName: fmt.Sprintf("Demiurge CA %x", serial[:4]), Organization: []string{cluster}}
	return selfSigned(template, private)
}

// foundingKey derives a P-256 key with 128 bits more than needed, so that the remainder shows nothing of
// the modulus (FIPS 186-5, A.2.1).
func foundingKey(key Key) (*ecdsa.PrivateKey, error) {
	raw, err := found(key, foundingCA, 48)
	if err != nil {
		return nil, err
	}
	most := new(big.Int).Sub(elliptic.P256().Params().N, big.NewInt(1))
	d := new(big.Int).Mod(new(big.Int).SetBytes(raw), most)
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d.Add(d, big.NewInt(1)).FillBytes(make([]byte, 32)))
	if err != nil {
		return nil, fmt.Errorf("cannot make the key of the founding CA: %w", err)
	}
	return private, nil
}

func found(key Key, use string, size int) ([]byte, error) {
	if key.IsZero() {
		return nil, refuse(Malformed, "cannot found a cluster without a cluster key")
	}
	out, err := hkdf.Key(sha256.New, []byte(key.secret.Reveal()), nil, use, size)
	if err != nil {
		return nil, fmt.Errorf("cannot derive from the cluster key: %w", err)
	}
	return out, nil
}
