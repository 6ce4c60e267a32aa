package tenantapi

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"time"
)

// sealer makes values that this process alone can read and make, for what a browser keeps or brings back. Its
// key is random and of this process: what was sealed before a restart is not understood, and begins anew.
type sealer struct {
	aead cipher.AEAD
	now  func() time.Time
}

func newSealer(now func() time.Time) (*sealer, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // crypto/rand never fails since Go 1.24
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &sealer{aead: aead, now: now}, nil
}

// envelope is what is sealed.
type envelope struct {
	Expires int64           `json:"e"`
	Value   json.RawMessage `json:"v"`
}

// seal makes a value that is good for a purpose and a time.
func (s *sealer) seal(purpose string, life time.Duration, value any) (string, error) {
	raw, err := json.Marshal(value)
	if err != nil {
		return "", err
	}
	form, err := json.Marshal(envelope{s.now().Add(life).Unix(), raw})
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nil, nil, form, []byte(purpose))), nil
}

var errSeal = errors.New("it was not made here, or its time is over")

// open reads what seal made for the purpose.
func (s *sealer) open(purpose, text string, into any) error {
	form, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return errSeal
	}
	if form, err = s.aead.Open(nil, nil, form, []byte(purpose)); err != nil {
		return errSeal
	}
	var e envelope
	if err := json.Unmarshal(form, &e); err != nil || s.now().Unix() >= e.Expires {
		return errSeal
	}
	return json.Unmarshal(e.Value, into)
}
