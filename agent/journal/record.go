package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
)

// The file is a header and then records: length of the payload (4 bytes, big endian), its CRC-32C
// (4 bytes), the payload. A payload is the JSON form of a record. A later record of a key replaces the
// earlier one, so the file can be read up to any whole record and gives a state that once was.
const (
	header     = "demiurge agent journal 1\n"
	prefixSize = 8
	maxPayload = 64 << 20 // above the largest organization the coordinator accepts
)

// record sets the value of a key, or deletes the key when it has none.
type record struct {
	Key   string          `json:"k"`
	Value json.RawMessage `json:"v,omitempty"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errFormat = errors.New("not a journal of this format")

// encode appends the record's form in the file to buf.
func encode(buf []byte, r record) ([]byte, error) {
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the journal's record of %s: %w", r.Key, err)
	}
	if len(payload) > maxPayload {
		return nil, fmt.Errorf("cannot write the journal's record of %s: %d bytes are more than %d", r.Key, len(payload), maxPayload)
	}
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(payload)))
	buf = binary.BigEndian.AppendUint32(buf, crc32.Checksum(payload, castagnoli))
	return append(buf, payload...), nil
}

// decode reads a whole file. It returns the last value of every key and the length of the part that is
// whole; what stands behind it is the torn tail of a write that a crash cut. Only a file that does not
// begin like a journal is an error: nothing may be cut from a file that is something else.
func decode(data []byte) (map[string]json.RawMessage, int, error) {
	values := make(map[string]json.RawMessage)
	if len(data) < len(header) {
		if !bytes.HasPrefix([]byte(header), data) {
			return nil, 0, errFormat
		}
		return values, 0, nil // the crash came while the first bytes were written
	}
	if string(data[:len(header)]) != header {
		return nil, 0, errFormat
	}
	whole := len(header)
	for {
		rest := data[whole:]
		if len(rest) < prefixSize {
			return values, whole, nil
		}
		size := binary.BigEndian.Uint32(rest)
		if size > maxPayload || int(size) > len(rest)-prefixSize {
			return values, whole, nil
		}
		payload := rest[prefixSize : prefixSize+int(size)]
		if crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(rest[4:]) {
			return values, whole, nil
		}
		var r record
		if err := json.Unmarshal(payload, &r); err != nil || r.Key == "" {
			return values, whole, nil
		}
		if len(r.Value) == 0 {
			delete(values, r.Key)
		} else {
			values[r.Key] = bytes.Clone(r.Value)
		}
		whole += prefixSize + int(size)
	}
}
