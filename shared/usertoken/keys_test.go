package usertoken

import "testing"

// FuzzKeys: a key set of an issuer is read or refused, and a set that is taken has a key of a pinned algorithm.
func FuzzKeys(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"keys":[]}`, `{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`, `{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`,
		`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`,
		`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA"}]}`, `{"keys":[null]}`, `{"keys":7}`, `{"keys":[]} {}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := parseKeys(data, []string{"EdDSA", "ES256", "RS256"})
		if err != nil {
			return
		}
		if len(keys) == 0 || len(keys) > maxKeys {
			t.Errorf("%q is taken for %d keys", data, len(keys))
		}
		for _, k := range keys {
			if k.public == nil {
				t.Errorf("%q gives a key without a public part", data)
			}
		}
	})
}
