package journal

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/demiurge-platform/demiurge/shared/records"
)

// The file is one of package records. A payload is the JSON form of a record. A later record of a key
// replaces the earlier one.
const (
	header     = "demiurge agent journal 1\n"
	maxPayload = 64 << 20 // above the largest organization the coordinator accepts
)

// record sets the value of a key, or deletes the key when it has none.
type record struct {
	Key   string          `json:"k"`
	Value json.RawMessage `json:"v,omitempty"`
}

// encode appends the records' form in the file to buf. A value is JSON already, as json.Marshal made it, and is
// taken as it is: encoding it once more would read it through twice, and this is on the way of every step.
func encode(buf []byte, entries ...record) ([]byte, error) {
	for _, r := range entries {
		key, err := json.Marshal(r.Key)
		if err != nil {
			return nil, fmt.Errorf("cannot encode the journal's record of %s: %w", r.Key, err)
		}
		payload := make([]byte, 0, len(key)+len(r.Value)+16)
		payload = append(append(payload, `{"k":`...), key...)
		if len(r.Value) > 0 {
			payload = append(append(payload, `,"v":`...), r.Value...)
		}
		payload = append(payload, '}')
		if len(payload) > maxPayload {
			return nil, fmt.Errorf("cannot write the journal's record of %s: %d bytes are more than %d", r.Key, len(payload), maxPayload)
		}
		buf = records.Append(buf, payload)
	}
	return buf, nil
}

// decode reads a whole file. It returns the last value of every key and the length of the part that is
// whole. Only a file that does not begin like a journal is an error (records.ErrFormat).
func decode(data []byte) (map[string]json.RawMessage, int, error) {
	values := make(map[string]json.RawMessage)
	whole, err := records.Scan(data, header, maxPayload, func(payload []byte) bool {
		var r record
		if err := json.Unmarshal(payload, &r); err != nil || r.Key == "" {
			return false
		}
		if len(r.Value) == 0 {
			delete(values, r.Key)
		} else {
			values[r.Key] = bytes.Clone(r.Value)
		}
		return true
	})
	if err != nil {
		return nil, 0, err
	}
	return values, whole, nil
}
