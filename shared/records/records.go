// Package records is the form of an append-only file of checksummed records: a header line that says
// what the file is, then for every record the length of its payload (4 bytes, big endian), the payload's
// CRC-32C (4 bytes) and the payload. A crash tears at most the end, and a reader finds where: the file can
// be read up to any whole record and gives a state that once was.
package records

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"

	"golang.org/x/sys/unix"
)

// PrefixSize is what a record takes in the file beside its payload.
const PrefixSize = 8

// ErrFormat says that a file does not begin with the header: it is something else, and nothing may be cut
// from it.
var ErrFormat = errors.New("not a file of this format")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append adds a payload in its form in the file to buf.
func Append(buf, payload []byte) []byte {
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(payload)))
	buf = binary.BigEndian.AppendUint32(buf, crc32.Checksum(payload, castagnoli))
	return append(buf, payload...)
}

// Scan reads a whole file and hands each payload of at most largest bytes to each, which must not keep it
// and returns false for one that it cannot read. Scan returns the length of the part that is whole; what
// stands behind it is the torn end of a write that a crash cut. A file that ends within its header has no
// whole part.
func Scan(data []byte, header string, largest int, each func(payload []byte) bool) (whole int, err error) {
	if len(data) < len(header) {
		if !bytes.HasPrefix([]byte(header), data) {
			return 0, ErrFormat
		}
		return 0, nil // the crash came while the first bytes were written
	}
	if string(data[:len(header)]) != header {
		return 0, ErrFormat
	}
	whole = len(header)
	for {
		rest := data[whole:]
		if len(rest) < PrefixSize {
			return whole, nil
		}
		size := int64(binary.BigEndian.Uint32(rest))
		if size > int64(largest) || size > int64(len(rest)-PrefixSize) {
			return whole, nil
		}
		payload := rest[PrefixSize : PrefixSize+int(size)]
		if crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(rest[4:]) || !each(payload) {
			return whole, nil
		}
		whole += PrefixSize + int(size)
	}
}

// OpenAppend opens a file that exists for appending. A symbolic link in its place is refused.
func OpenAppend(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
}
